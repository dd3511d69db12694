{{/* Names and labels. */}}

{{- define "margay.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* (dict "root" $ "component" "nats") */}}
{{- define "margay.selector" -}}
app.kubernetes.io/name: margay
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "margay.labels" -}}
{{ include "margay.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{- define "margay.natsUrl" -}}
{{- if .Values.nats.external.url -}}
{{ .Values.nats.external.url }}
{{- else -}}
{{ ternary "tls" "nats" (ne .Values.nats.tls.secretName "") }}://{{ .Release.Name }}-nats:4222
{{- end -}}
{{- end }}

{{- define "margay.passwordsSecret" -}}
{{ .Values.nats.passwordsSecret | default (printf "%s-nats" .Release.Name) }}
{{- end }}

{{/* The models with every key that a template reads. */}}
{{- define "margay.models" -}}
{{- $placed := dict "resources" dict "nodeSelector" dict "tolerations" list "affinity" dict "priorityClassName" "" "podAnnotations" dict -}}
{{- $volume := dict "image" "" "hostPath" "" "claim" (dict "name" "" "path" "") "copy" (dict "image" "" "sizeLimit" "") -}}
{{- $models := dict -}}
{{- range $key, $model := .Values.models -}}
{{- $all := dict "name" "" "volume" (deepCopy $volume) "engine" dict "prefill" (deepCopy $placed) "decode" (deepCopy $placed) -}}
{{- $_ := set $models $key (mergeOverwrite $all (deepCopy $model)) -}}
{{- end -}}
{{- toJson $models -}}
{{- end }}

{{/* Name of a model in requests. (dict "key" "nano" "model" .) */}}
{{- define "margay.modelName" -}}
{{ .model.name | default .key }}
{{- end }}

{{/* Folder of a model's checkpoint inside its containers. (dict "key" "nano" "model" .) */}}
{{- define "margay.modelFolder" -}}
{{- if .model.volume.image -}}
{{ .model.volume.image }}
{{- else -}}
/models/{{ .key }}
{{- end -}}
{{- end }}

{{/* What the gateway speaks. */}}
{{- define "margay.scheme" -}}
{{- ternary "https" "http" (ne .Values.controlPlane.tls.secretName "") -}}
{{- end }}
