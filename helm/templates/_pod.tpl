{{/* What the pods have in common. */}}

{{- define "margay.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "margay.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{/* Where a pod may run, and its image pull secrets. (dict "root" $ "placed" .Values.nats "component" "nats") */}}
{{- define "margay.placement" -}}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .placed.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .placed.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .placed.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .placed.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "margay.selector" . | nindent 8 }}
{{- end }}

{{/* Settings of every Margay process. (dict "root" $ "user" "prefill") */}}
{{- define "margay.environment" -}}
- { name: POD_IP, valueFrom: { fieldRef: { fieldPath: status.podIP } } }
- { name: MARGAY_NATS_URL, value: {{ include "margay.natsUrl" .root | quote }} }
- { name: MARGAY_NATS_USER, value: {{ .user }} }
- name: MARGAY_NATS_PASSWORD
  valueFrom: { secretKeyRef: { name: {{ include "margay.passwordsSecret" .root }}, key: {{ .user }} } }
- { name: MARGAY_LOG_LEVEL, value: {{ .root.Values.logLevel }} }
- { name: MARGAY_DRAIN_SECONDS, value: {{ .root.Values.drainSeconds | quote }} }
{{- with .root.Values.nats.tls }}
{{- if .secretName }}
- { name: MARGAY_NATS_CA_FILE, value: /etc/margay/nats/ca.crt }
{{- end }}
{{- if .clientsSecretName }}
- { name: MARGAY_NATS_CERT_FILE, value: /etc/margay/nats-client/tls.crt }
- { name: MARGAY_NATS_KEY_FILE, value: /etc/margay/nats-client/tls.key }
{{- end }}
{{- end }}
{{- end }}

{{- define "margay.mounts" -}}
- { name: scratch, mountPath: /tmp }
{{- if .root.Values.nats.tls.secretName }}
- { name: nats-authority, mountPath: /etc/margay/nats, readOnly: true }
{{- end }}
{{- if .root.Values.nats.tls.clientsSecretName }}
- { name: nats-client, mountPath: /etc/margay/nats-client, readOnly: true }
{{- end }}
{{- end }}

{{- define "margay.volumes" -}}
- { name: scratch, emptyDir: {} }
{{- with .root.Values.nats.tls.secretName }}
- name: nats-authority
  secret: { secretName: {{ . }}, items: [{ key: ca.crt, path: ca.crt }] }
{{- end }}
{{- with .root.Values.nats.tls.clientsSecretName }}
- { name: nats-client, secret: { secretName: {{ . }} } }
{{- end }}
{{- end }}

{{/* Volume, mount and init container of a model's checkpoint. (dict "key" "nano" "model" . "root" $) */}}
{{- define "margay.modelVolume" -}}
{{- $volume := .model.volume -}}
{{- if $volume.claim.name }}
- { name: model-{{ .key }}, persistentVolumeClaim: { claimName: {{ $volume.claim.name }}, readOnly: true } }
{{- else if $volume.hostPath }}
- { name: model-{{ .key }}, hostPath: { path: {{ $volume.hostPath }}, type: Directory } }
{{- else if $volume.copy.image }}
- name: model-{{ .key }}
  emptyDir: {{ if $volume.copy.sizeLimit }}{ sizeLimit: {{ $volume.copy.sizeLimit }} }{{ else }}{}{{ end }}
{{- end }}
{{- end }}

{{- define "margay.modelMount" -}}
{{- $volume := .model.volume -}}
{{- if not $volume.image }}
- name: model-{{ .key }}
  mountPath: /models/{{ .key }}
  readOnly: true
  {{- if and $volume.claim.name $volume.claim.path }}
  subPath: {{ $volume.claim.path }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "margay.modelCopy" -}}
{{- with .model.volume.copy }}
{{- if .image }}
- name: copy-{{ $.key }}
  image: {{ .image }}
  {{- with .command }}
  command: {{ toJson . }}
  {{- end }}
  {{- with .args }}
  args: {{ toJson . }}
  {{- end }}
  {{- with .env }}
  env: {{ toJson . }}
  {{- end }}
  securityContext:
    {{- include "margay.containerSecurity" $ | nindent 4 }}
  volumeMounts:
    - { name: model-{{ $.key }}, mountPath: /models/{{ $.key }} }
    - { name: scratch, mountPath: /tmp }
{{- end }}
{{- end }}
{{- end }}

{{/*
Probes of a process that answers /livez and /readyz at the named port. A start may take long: weights are packed.
(dict "port" "health" "scheme" "HTTP")
*/}}
{{- define "margay.probes" -}}
{{- $at := printf "port: %s" .port }}
{{- if eq .scheme "HTTPS" }}
{{- $at = printf "%s, scheme: HTTPS" $at }}
{{- end }}
startupProbe:
  httpGet: { path: /livez, {{ $at }} }
  periodSeconds: 1
  failureThreshold: 3600
livenessProbe:
  httpGet: { path: /livez, {{ $at }} }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: { path: /readyz, {{ $at }} }
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 2
{{- end }}
