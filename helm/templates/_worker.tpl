{{/*
The pods of one model and role. (dict "root" $ "key" "nano" "model" . "role" "prefill")

A worker of one rank is a pod of a Deployment, whose replicas the control plane sets; a worker of several is a group of a
LeaderWorkerSet, likewise. The control plane finds a pool by the release's label, the role's label and the model's annotation.
*/}}
{{- define "margay.poolName" -}}
{{ .root.Release.Name }}-{{ .key }}-{{ .role }}
{{- end }}

{{- define "margay.poolSelector" -}}
{{ include "margay.selector" (dict "root" .root "component" .role) }}
margay.dev/pool: {{ .key }}
{{- end }}

{{- define "margay.poolLabels" -}}
{{ include "margay.labels" (dict "root" .root "component" .role) }}
margay.dev/pool: {{ .key }}
margay.dev/role: {{ .role }}
{{- end }}

{{- define "margay.workerPod" -}}
{{- $values := .root.Values -}}
{{- $ranks := index $values.ranks .role | int -}}
{{- $placed := index .model .role -}}
{{- $folder := include "margay.modelFolder" . -}}
metadata:
  labels:
    {{- include "margay.poolLabels" . | nindent 4 }}
  annotations:
    margay.dev/model: {{ include "margay.modelName" . | quote }}
    {{- with $placed.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ .root.Release.Name }}-worker
  automountServiceAccountToken: false
  enableServiceLinks: false
  # It stops taking requests at once, finishes what runs, and then has ten seconds to end.
  terminationGracePeriodSeconds: {{ add $values.drainSeconds 10 }}
  securityContext:
    {{- include "margay.podSecurity" . | nindent 4 }}
  {{- include "margay.placement" (dict "root" .root "placed" $placed "component" .role) | nindent 2 }}
  {{- with include "margay.modelCopy" . }}
  initContainers:
    {{- . | nindent 4 }}
  {{- end }}
  containers:
    - name: worker
      image: {{ include "margay.image" .root }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      command: [node, {{ .role }}-node/main.ts]
      terminationMessagePolicy: FallbackToLogsOnError
      securityContext:
        {{- include "margay.containerSecurity" . | nindent 8 }}
      env:
        {{- include "margay.environment" (dict "root" .root "user" .role) | nindent 8 }}
        {{- if eq $ranks 1 }}
        - { name: MARGAY_WORKER_ID, valueFrom: { fieldRef: { fieldPath: metadata.name } } }
        {{- else }}
        - name: GROUP_INDEX
          valueFrom: { fieldRef: { fieldPath: "metadata.labels['leaderworkerset.sigs.k8s.io/group-index']" } }
        - name: MARGAY_RANK
          valueFrom: { fieldRef: { fieldPath: "metadata.labels['leaderworkerset.sigs.k8s.io/worker-index']" } }
        - { name: MARGAY_RANKS, value: {{ $ranks | quote }} }
        - { name: MARGAY_WORKER_ID, value: {{ include "margay.poolName" . }}-$(GROUP_INDEX) }
        - { name: MARGAY_EXCHANGE_HOST, value: $(POD_IP) }
        {{- end }}
        - { name: MARGAY_MODEL, value: {{ $folder | quote }} }
        - { name: MARGAY_MODEL_NAME, value: {{ include "margay.modelName" . | quote }} }
        - { name: MARGAY_STATE_DIR, value: /var/lib/margay }
        - { name: MARGAY_HEALTH_HOST, value: $(POD_IP) }
        - { name: MARGAY_HEALTH_PORT, value: "8080" }
        - { name: MARGAY_KV_HOST, value: $(POD_IP) }
        {{- if eq $ranks 1 }}
        - { name: MARGAY_KV_PORT, value: "7000" }
        {{- end }}
        {{- if $values.kvTls.secretName }}
        - { name: MARGAY_KV_TLS_CERT_FILE, value: /etc/margay/kv/tls.crt }
        - { name: MARGAY_KV_TLS_KEY_FILE, value: /etc/margay/kv/tls.key }
        - { name: MARGAY_KV_TLS_CA_FILE, value: /etc/margay/kv/ca.crt }
        {{- end }}
        {{- include "margay.engine" .model.engine | nindent 8 }}
      ports:
        - { name: health, containerPort: 8080 }
      {{- include "margay.probes" (dict "port" "health" "scheme" "HTTP") | nindent 6 }}
      resources:
        {{- toYaml $placed.resources | nindent 8 }}
      volumeMounts:
        - { name: state, mountPath: /var/lib/margay }
        {{- if $values.kvTls.secretName }}
        - { name: kv-tls, mountPath: /etc/margay/kv, readOnly: true }
        {{- end }}
        {{- include "margay.mounts" . | nindent 8 }}
        {{- include "margay.modelMount" . | nindent 8 }}
  volumes:
    {{- if $values.packedWeights.hostPath }}
    - { name: state, hostPath: { path: {{ $values.packedWeights.hostPath }}, type: DirectoryOrCreate } }
    {{- else }}
    - { name: state, emptyDir: {} }
    {{- end }}
    {{- with $values.kvTls.secretName }}
    - { name: kv-tls, secret: { secretName: {{ . }} } }
    {{- end }}
    {{- include "margay.volumes" . | nindent 4 }}
    {{- include "margay.modelVolume" . | nindent 4 }}
{{- end }}

{{/* A model's engine settings that are set. */}}
{{- define "margay.engine" -}}
{{- $names := dict "backend" "BACKEND" "threads" "THREADS" "kvMib" "KV_MIB" "kvTierMib" "KV_TIER_MIB" "slots" "SLOTS" "stepTokens" "STEP_TOKENS" "tpotGoalMs" "TPOT_GOAL_MS" "latentNormEps" "LATENT_NORM_EPS" "weightFormat" "WEIGHT_FORMAT" "speculation" "SPECULATION" -}}
{{- range $key, $value := . }}
{{- if not (kindIs "invalid" $value) }}
{{- if eq $key "deterministic" }}
- { name: MARGAY_DETERMINISTIC, value: {{ ternary "1" "0" $value | quote }} }
{{- else }}
- { name: MARGAY_{{ index $names $key }}, value: {{ ternary $value (int64 $value | toString) (kindIs "string" $value) | quote }} }
{{- end }}
{{- end }}
{{- end }}
{{- end }}
