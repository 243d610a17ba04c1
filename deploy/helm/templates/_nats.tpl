{{- /* The settings of a NATS user, and the files that they name, from values like `nats`. */}}
{{- define "guestflow.natsEnv" -}}
{{- $dir := "/etc/guestflow/nats" }}
{{- $env := dict "NATS_URL" .url "NATS_USER" .user "NATS_JS_DOMAIN" .jsDomain "NATS_JS_API_PREFIX" .jsApiPrefix "NATS_INBOX_PREFIX" .inboxPrefix }}
{{- if .credsSecret }}{{ $_ := set $env "NATS_CREDS_FILE" (print $dir "/user.creds") }}{{ end }}
{{- if .nkeySecret }}{{ $_ := set $env "NATS_NKEY_FILE" (print $dir "/user.nk") }}{{ end }}
{{- if .passwordSecret }}{{ $_ := set $env "NATS_PASSWORD_FILE" (print $dir "/password") }}{{ end }}
{{- if .caFrom }}{{ $_ := set $env "NATS_CA_FILE" (print $dir "/ca.crt") }}{{ end }}
{{- if .certSecret }}{{ $_ := set $env "NATS_CERT_FILE" (print $dir "/tls.crt") }}{{ $_ := set $env "NATS_KEY_FILE" (print $dir "/tls.key") }}{{ end }}
{{- range $name, $value := $env }}
{{- with $value }}
- name: {{ $name }}
  value: {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "guestflow.natsFiles" -}}
{{- with .credsSecret }}
{{- include "guestflow.file" (dict "secret" .name "key" (default "user.creds" .key) "path" "nats/user.creds") }}
{{- end }}
{{- with .nkeySecret }}
{{- include "guestflow.file" (dict "secret" .name "key" (default "user.nk" .key) "path" "nats/user.nk") }}
{{- end }}
{{- with .passwordSecret }}
{{- include "guestflow.file" (dict "secret" .name "key" (default "password" .key) "path" "nats/password") }}
{{- end }}
{{- with .caFrom }}
{{- include "guestflow.file" (dict "secret" .secret "configMap" .configMap "key" (default "ca.crt" .key) "path" "nats/ca.crt") }}
{{- end }}
{{- with .certSecret }}
{{- include "guestflow.file" (dict "secret" . "key" "tls.crt" "path" "nats/tls.crt") }}
{{- include "guestflow.file" (dict "secret" . "key" "tls.key" "path" "nats/tls.key") }}
{{- end }}
{{- end }}

{{- /* One source of a projected volume: a key of a Secret or ConfigMap. Not optional: a pod waits for it, and its events say so. */}}
{{- define "guestflow.file" }}
- {{ ternary "secret" "configMap" (not (empty .secret)) }}:
    name: {{ default .configMap .secret }}
    items:
      - key: {{ .key }}
        path: {{ .path }}
{{- end }}

{{- /* The values of the user that `helm test` is: server and CA as the service has them. */}}
{{- define "guestflow.testNATS" -}}
{{- $service := set (deepCopy .Values.nats) "url" (include "guestflow.natsURL" .) }}
{{- if .Values.tests.nats }}
{{- $service = pick $service "url" "caFrom" "jsDomain" "jsApiPrefix" }}
{{- end }}
{{- mergeOverwrite $service .Values.tests.nats | toYaml }}
{{- end }}
