{{- /* Secrets as files, in whole volumes: Kubernetes renews those, it never renews a subPath. */}}
{{- define "guestflow.volumes" -}}
- name: credentials
  projected:
    defaultMode: 0440
    sources:
      {{- include "guestflow.credentials" . | trim | nindent 6 }}
{{- if eq (include "guestflow.hasGuestSecrets" .) "true" }}
- name: guest-secrets
  projected:
    defaultMode: 0440
    sources:
      {{- range $vcenter, $settings := .Values.vcenters }}
      {{- range $name, $guest := $settings.guestSecrets }}
      - secret:
          name: {{ $guest.secret }}
          # a missing one fails the requests that name it, no pod
          optional: true
          items:
            {{- range default (list "username" "password") $guest.keys }}
            - key: {{ . }}
              path: {{ $vcenter }}/{{ $name }}/{{ . }}
            {{- end }}
      {{- end }}
      {{- end }}
{{- end }}
{{- end }}

{{- define "guestflow.credentials" -}}
{{- include "guestflow.natsFiles" .Values.nats }}
{{- range $name, $vcenter := .Values.vcenters }}
{{- with $vcenter.passwordSecret }}
{{- include "guestflow.file" (dict "secret" .name "key" (default "password" .key) "path" (printf "vcenters/%s/password" $name)) }}
{{- end }}
{{- with $vcenter.caFrom }}
{{- include "guestflow.file" (dict "secret" .secret "configMap" .configMap "key" (default "ca.crt" .key) "path" (printf "vcenters/%s/ca.crt" $name)) }}
{{- end }}
{{- end }}
{{- end }}
