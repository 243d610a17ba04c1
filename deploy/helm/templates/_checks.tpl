{{- /* What the schema cannot say: faults between values, all at once, each with its cure. */}}
{{- define "guestflow.checks" -}}
{{- $faults := list }}
{{- $bundled := index .Values "nats-server" "enabled" }}
{{- if not .Values.vcenters }}
{{- $faults = append $faults "vcenters: name at least one, with url, username and passwordSecret" }}
{{- end }}
{{- if and (not .Values.nats.url) (not $bundled) }}
{{- $faults = append $faults "nats.url: say where NATS is, such as nats://nats.nats:4222, or set nats-server.enabled=true for a first try" }}
{{- end }}
{{- if and .Values.nats.url $bundled }}
{{- $faults = append $faults "nats.url and nats-server.enabled: set one of them" }}
{{- end }}
{{- range $at, $nats := dict "nats" .Values.nats "tests.nats" .Values.tests.nats }}
{{- range include "guestflow.natsChecks" (dict "at" $at "nats" $nats) | fromYamlArray }}
{{- $faults = append $faults . }}
{{- end }}
{{- end }}
{{- range $name, $vcenter := .Values.vcenters }}
{{- if and $vcenter.caFrom (eq (empty (dig "caFrom" "secret" "" $vcenter)) (empty (dig "caFrom" "configMap" "" $vcenter))) }}
{{- $faults = append $faults (printf "vcenters.%s.caFrom: set either secret or configMap" $name) }}
{{- end }}
{{- end }}
{{- $set := include "guestflow.env" . | fromYamlArray }}
{{- range $extra := .Values.extraEnv }}
{{- range $set }}
{{- if eq .name $extra.name }}
{{- $faults = append $faults (printf "extraEnv: %s is set by the chart already: change the value that it comes from (see README.md)" .name) }}
{{- end }}
{{- end }}
{{- if regexMatch "^VCENTER_.*_PASSWORD$" $extra.name }}
{{- $faults = append $faults (printf "extraEnv: %s: a password comes from a Secret, vcenters.<name>.passwordSecret" $extra.name) }}
{{- end }}
{{- end }}
{{- range $at := list "commonLabels" "podLabels" }}
{{- range $label, $_ := index $.Values $at }}
{{- if regexMatch "^(app[.]kubernetes[.]io/(name|instance|component|version|managed-by)|helm[.]sh/chart)$" $label }}
{{- $faults = append $faults (printf "%s: %s is set by the chart, and the Deployment's selector needs it: leave it out" $at $label) }}
{{- end }}
{{- end }}
{{- end }}
{{- if and .Values.tracing.headersSecret (not .Values.tracing.endpoint) }}
{{- $faults = append $faults "tracing.headersSecret: without tracing.endpoint nothing is sent: set it, too" }}
{{- end }}
{{- with .Values.autoscaling }}
{{- if and .hpa.enabled .keda.enabled }}
{{- $faults = append $faults "autoscaling.hpa and autoscaling.keda: enable one of them, they would fight" }}
{{- end }}
{{- range $at, $scaler := dict "hpa" .hpa "keda" .keda }}
{{- if gt (int64 $scaler.minReplicas) (int64 $scaler.maxReplicas) }}
{{- $faults = append $faults (printf "autoscaling.%s: minReplicas is above maxReplicas" $at) }}
{{- end }}
{{- end }}
{{- if and .keda.enabled (not .keda.monitoringEndpoint) (not $bundled) }}
{{- $faults = append $faults "autoscaling.keda.monitoringEndpoint: say where nats-server's monitoring port is, such as nats.nats:8222" }}
{{- end }}
{{- end }}
{{- if and .Values.externalSecrets.secrets (not (and .Values.externalSecrets.store.name .Values.externalSecrets.store.kind)) }}
{{- $faults = append $faults "externalSecrets.store: set kind and name of the store that the secrets come from" }}
{{- end }}
{{- with .Values.tests }}
{{- if and .vm .vcenter (not (hasKey $.Values.vcenters .vcenter)) }}
{{- $faults = append $faults (printf "tests.vcenter: %s is none of vcenters" .vcenter) }}
{{- end }}
{{- if and .vm (not .vcenter) (gt (len $.Values.vcenters) 1) }}
{{- $faults = append $faults "tests.vcenter: say which vCenter has the VM: there are several" }}
{{- end }}
{{- end }}
{{- if $faults }}
{{- fail (printf "\n\nThe values do not fit together:\n- %s\n" (join "\n- " $faults)) }}
{{- end }}
{{- end }}

{{- define "guestflow.natsChecks" -}}
{{- $at := .at }}
{{- with .nats }}
{{- $ways := 0 }}
{{- range list .credsSecret .nkeySecret .user }}{{ if . }}{{ $ways = add1 $ways }}{{ end }}{{ end }}
{{- if gt (int $ways) 1 }}
- {{ printf "%s: set one of credsSecret, nkeySecret and user" $at | quote }}
{{- end }}
{{- if ne (empty .user) (empty .passwordSecret) }}
- {{ printf "%s.user and %s.passwordSecret: set both or none" $at $at | quote }}
{{- end }}
{{- if and .jsDomain .jsApiPrefix }}
- {{ printf "%s.jsDomain and %s.jsApiPrefix: set one of them" $at $at | quote }}
{{- end }}
{{- if and .caFrom (eq (empty .caFrom.secret) (empty .caFrom.configMap)) }}
- {{ printf "%s.caFrom: set either secret or configMap" $at | quote }}
{{- end }}
{{- end }}
{{- end }}
