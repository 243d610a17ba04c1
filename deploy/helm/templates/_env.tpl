{{- /* The service's whole environment, but extraEnv. No value is a secret: those are files, so that a new one works without a restart. */}}
{{- define "guestflow.env" -}}
- name: GUESTFLOW_INSTANCE
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
{{- include "guestflow.natsEnv" (set (deepCopy .Values.nats) "url" (include "guestflow.natsURL" .)) }}
- name: GUESTFLOW_VCENTERS
  value: {{ keys .Values.vcenters | sortAlpha | join "," | quote }}
{{- if eq (include "guestflow.hasGuestSecrets" .) "true" }}
- name: GUESTFLOW_SECRETS_DIR
  value: {{ include "guestflow.secretsDir" . }}
{{- end }}
{{- with .Values.streams }}
- name: GUESTFLOW_PROVISION
  value: {{ eq .provisioning "service" | quote }}
- name: GUESTFLOW_STREAM_REPLICAS
  value: {{ int64 .replicas | quote }}
- name: GUESTFLOW_EVENTS_MAX_AGE
  value: {{ .eventsMaxAge | quote }}
- name: GUESTFLOW_EVENTS_MAX_BYTES
  value: {{ int64 .eventsMaxBytes | quote }}
- name: GUESTFLOW_DEADLETTERS_MAX_AGE
  value: {{ .deadlettersMaxAge | quote }}
- name: GUESTFLOW_DEADLETTERS_MAX_BYTES
  value: {{ int64 .deadlettersMaxBytes | quote }}
- name: GUESTFLOW_QUEUE_PER_VM
  value: {{ int64 .queuePerVm | quote }}
{{- end }}
- name: GUESTFLOW_EVENT_MODE
  value: {{ .Values.eventMode }}
- name: GUESTFLOW_ACK_WAIT
  value: {{ .Values.ackWait | quote }}
- name: GUESTFLOW_DRAIN_TIMEOUT
  value: {{ .Values.drainTimeout | quote }}
- name: HTTP_ADDR
  value: {{ printf ":%d" (int64 .Values.port) | quote }}
- name: LOG_LEVEL
  value: {{ .Values.log.level }}
- name: LOG_FORMAT
  value: {{ .Values.log.format }}
{{- range $name, $vcenter := .Values.vcenters }}
{{- include "guestflow.vcenterEnv" (dict "name" $name "vcenter" $vcenter) }}
{{- end }}
{{- with .Values.tracing }}
{{- if .endpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .endpoint | quote }}
{{- end }}
{{- with .headersSecret }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom:
    secretKeyRef:
      name: {{ .name }}
      key: {{ default "headers" .key }}
{{- end }}
{{- range $name, $value := .env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "guestflow.vcenterEnv" -}}
{{- $prefix := printf "VCENTER_%s_" (.name | upper | replace "-" "_") }}
{{- with .vcenter }}
- name: {{ $prefix }}URL
  value: {{ .url | quote }}
- name: {{ $prefix }}USERNAME
  value: {{ .username | quote }}
- name: {{ $prefix }}PASSWORD_FILE
  value: /etc/guestflow/vcenters/{{ $.name }}/password
{{- if .caFrom }}
- name: {{ $prefix }}CA_FILE
  value: /etc/guestflow/vcenters/{{ $.name }}/ca.crt
{{- end }}
{{- with .thumbprint }}
- name: {{ $prefix }}THUMBPRINT
  value: {{ . | quote }}
{{- end }}
{{- with .maxInFlight }}
- name: {{ $prefix }}MAX_IN_FLIGHT
  value: {{ int64 . | quote }}
{{- end }}
{{- with .sendWindow }}
- name: {{ $prefix }}SEND_WINDOW
  value: {{ . | quote }}
{{- end }}
{{- with .travelTime }}
- name: {{ $prefix }}TRAVEL_TIME
  value: {{ . | quote }}
{{- end }}
{{- with .visibilityLag }}
- name: {{ $prefix }}VISIBILITY_LAG
  value: {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "guestflow.secretsDir" -}}
/var/run/secrets/guestflow
{{- end }}

{{- define "guestflow.hasGuestSecrets" -}}
{{- $has := false }}
{{- range .Values.vcenters }}{{ if .guestSecrets }}{{ $has = true }}{{ end }}{{ end }}
{{- $has }}
{{- end }}
