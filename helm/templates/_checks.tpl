{{/* Values that the schema takes one by one and that do not go together. Each sentence says what to change. */}}
{{- define "margay.checks" -}}
{{- $values := .Values }}
{{- range $role := list "prefill" "decode" }}
{{- $range := index $values.scaling $role }}
{{- $ranks := index $values.ranks $role | int }}
{{- if gt (int $range.min) (int $range.max) }}
{{- fail (printf "scaling.%s: min %d is more than max %d" $role (int $range.min) (int $range.max)) }}
{{- end }}
{{- if and (gt $ranks 1) (lt $ranks (int $values.ranks.least)) }}
{{- fail (printf "ranks.least: a worker of %d ranks cannot go on with %d; set it to at most ranks.%s" $ranks (int $values.ranks.least) $role) }}
{{- end }}
{{- end }}
{{- if and $values.nats.external.url $values.nats.tls.secretName (not (hasPrefix "tls://" $values.nats.external.url)) }}
{{- fail "nats.external.url: with nats.tls.secretName it must begin with tls://" }}
{{- end }}
{{- if and $values.nats.tls.clientsSecretName (not $values.nats.tls.secretName) }}
{{- fail "nats.tls.clientsSecretName: certificates are shown over TLS only; set nats.tls.secretName too" }}
{{- end }}
{{- with $values.controlPlane.tls }}
{{- if and .clientsSecretName (not .secretName) }}
{{- fail "controlPlane.tls.clientsSecretName: certificates are shown over TLS only; set controlPlane.tls.secretName too" }}
{{- end }}
{{- end }}
{{- if and $values.nats.external.url (not $values.nats.passwordsSecret) }}
{{- fail "nats.passwordsSecret: a server of your own knows its users already; name the secret with their passwords" }}
{{- end }}
{{- $names := dict }}
{{- range $key, $model := include "margay.models" . | fromJson }}
{{- $volume := $model.volume }}
{{- $sources := list $volume.image $volume.claim.name $volume.hostPath $volume.copy.image | compact | len }}
{{- if ne $sources 1 }}
{{- fail (printf "models.%s.volume: %d of image, claim.name, hostPath and copy.image are set; set exactly one (the default is image, so set that to \"\")" $key $sources) }}
{{- end }}
{{- $name := include "margay.modelName" (dict "key" $key "model" $model) }}
{{- if hasKey $names $name }}
{{- fail (printf "models.%s.name: %s is the name of models.%s already" $key $name (index $names $name)) }}
{{- end }}
{{- $_ := set $names $name $key }}
{{- range $role := list "prefill" "decode" }}
{{- if gt (len (printf "%s-%s-%s" $.Release.Name $key $role)) 46 }}
{{- fail (printf "models.%s: the name of the %s pool, %s-%s-%s, has more than 46 characters; shorten the key or the release's name" $key $role $.Release.Name $key $role) }}
{{- end }}
{{- range $kind, $amount := index $model $role "resources" "limits" | default dict }}
{{- if and (contains "gpu" $kind) (ne (toString $amount) "0") }}
{{- fail (printf "models.%s.%s.resources.limits: %s of %s would lie idle: the kernels (engine.backend) run on processors" $key $role (toString $amount) $kind) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
