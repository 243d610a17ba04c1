{{- define "guestflow.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "guestflow.fullname" -}}
{{- $name := include "guestflow.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* Of all objects of the release: what the NetworkPolicy selects. */}}
{{- define "guestflow.instanceLabels" -}}
app.kubernetes.io/name: {{ include "guestflow.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* Of the service's pods alone. They are part of the Deployment's selector, which can never be changed. */}}
{{- define "guestflow.selectorLabels" -}}
{{ include "guestflow.instanceLabels" . }}
app.kubernetes.io/component: consumer
{{- end }}

{{- define "guestflow.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "guestflow.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "guestflow.serviceAccountName" -}}
{{- $own := ternary (include "guestflow.fullname" .) "default" .Values.serviceAccount.create }}
{{- default $own .Values.serviceAccount.name }}
{{- end }}

{{- /* A reference of an image: (list $ .Values.image). */}}
{{- define "guestflow.image" -}}
{{- $root := index . 0 }}
{{- with index . 1 }}
{{- if .digest }}
{{- printf "%s@%s" .repository .digest }}
{{- else }}
{{- printf "%s:%s" .repository (default $root.Chart.AppVersion .tag) }}
{{- end }}
{{- end }}
{{- end }}

{{- /* The seconds of a duration as Go writes it, such as 1m30s, rounded up. */}}
{{- define "guestflow.seconds" -}}
{{- $units := dict "h" 3600.0 "m" 60.0 "s" 1.0 "ms" 0.001 }}
{{- $sum := 0.0 }}
{{- range regexFindAll "[0-9.]+[hms]+" . -1 }}
{{- $unit := regexFind "[hms]+$" . }}
{{- $sum = addf $sum (mulf (trimSuffix $unit . | float64) (index $units $unit)) }}
{{- end }}
{{- ceil $sum | int64 }}
{{- end }}

{{- define "guestflow.natsURL" -}}
{{- if index .Values "nats-server" "enabled" }}
{{- printf "nats://%s:4222" (include "guestflow.natsServer" .) }}
{{- else }}
{{- .Values.nats.url }}
{{- end }}
{{- end }}

{{- /* What the NATS chart calls its objects. */}}
{{- define "guestflow.natsServer" -}}
{{- with index .Values "nats-server" }}
{{- $name := default "nats-server" .nameOverride }}
{{- if .fullnameOverride }}
{{- .fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains $name $.Release.Name }}
{{- $.Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" $.Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- /* The port of a URL, by its scheme where it names none. */}}
{{- define "guestflow.port" -}}
{{- $url := urlParse (trim .) }}
{{- $byScheme := dict "https" "443" "http" "80" "wss" "443" "ws" "80" "nats" "4222" "tls" "4222" }}
{{- regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (index $byScheme $url.scheme) }}
{{- end }}
