{{/* How the platform reaches Kafka, Triton and the store: said once, for the worker and for each job that needs them. */}}

{{/* Kafka's login and certificates as YAML; Strimzi's user and authority where it makes them. */}}
{{- define "mristream.kafka.login" -}}
{{- $kafka := .Values.kafka -}}
{{- if $kafka.strimzi.enabled -}}
{{- $user := printf "%s-worker" (include "mristream.fullname" .) -}}
tls: true
ca: {name: {{ $kafka.strimzi.cluster }}-cluster-ca-cert, key: ca.crt}
{{- if eq $kafka.strimzi.authentication "tls" }}
client: {name: {{ $user }}, certKey: user.crt, keyKey: user.key}
{{- else }}
mechanism: SCRAM-SHA-512
username: {{ $user }}
password: {name: {{ $user }}, key: password}
{{- end }}
{{- else -}}
tls: {{ $kafka.tls.enabled }}
{{- with $kafka.tls.caSecret }}{{ if .name }}
ca: {name: {{ .name }}, key: {{ .key }}}
{{- end }}{{ end }}
{{- with $kafka.tls.clientSecret }}{{ if .name }}
client: {name: {{ .name }}, certKey: {{ .certKey }}, keyKey: {{ .keyKey }}}
{{- end }}{{ end }}
{{- with $kafka.sasl }}{{ if .mechanism }}
mechanism: {{ .mechanism }}
username: {{ .username | quote }}
password: {name: {{ .passwordSecret.name }}, key: {{ .passwordSecret.key }}}
{{- end }}{{ end }}
{{- end -}}
{{- end }}

{{/* Settings of Kafka, as docs/settings.md calls them. */}}
{{- define "mristream.kafka.settings" -}}
{{- $login := include "mristream.kafka.login" . | fromYaml -}}
{{- $kafka := .Values.kafka -}}
bootstrap_servers: {{ $kafka.bootstrapServers | quote }}
scans_topic: {{ $kafka.topics.scans | quote }}
stat_topic: {{ $kafka.topics.stat | quote }}
replay_topic: {{ $kafka.topics.replay | quote }}
results_topic: {{ $kafka.topics.results | quote }}
dead_topic: {{ $kafka.topics.dead | quote }}
partitions: {{ $kafka.partitions }}
group_id: {{ $kafka.groupId | quote }}
group_protocol: {{ $kafka.groupProtocol }}
security_protocol: {{ if $login.mechanism }}SASL_{{ end }}{{ if $login.tls }}SSL{{ else }}PLAINTEXT{{ end }}
{{- if $login.ca }}
ca_file: /etc/mristream/kafka/ca.crt
{{- end }}
{{- if $login.client }}
cert_file: /etc/mristream/kafka/tls.crt
key_file: /etc/mristream/kafka/tls.key
{{- end }}
{{- if $login.mechanism }}
sasl_mechanism: {{ $login.mechanism }}
username: {{ $login.username | quote }}
password_file: /etc/mristream/kafka/password
{{- with $kafka.sasl.oauthTokenUrl }}
oauth_token_url: {{ . | quote }}
{{- end }}
{{- with $kafka.sasl.oauthScope }}
oauth_scope: {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* What is mounted at /etc/mristream/kafka; nothing if no secret is needed. */}}
{{- define "mristream.kafka.secrets" -}}
{{- $login := include "mristream.kafka.login" . | fromYaml -}}
{{- with $login.ca }}
- secret: {name: {{ .name }}, items: [{key: {{ .key }}, path: ca.crt}]}
{{- end }}
{{- with $login.client }}
- secret: {name: {{ .name }}, items: [{key: {{ .certKey }}, path: tls.crt}, {key: {{ .keyKey }}, path: tls.key}]}
{{- end }}
{{- with $login.password }}
- secret: {name: {{ .name }}, items: [{key: {{ .key }}, path: password}]}
{{- end }}
{{- end }}

{{- define "mristream.triton.secrets" -}}
{{- with .Values.triton.tls }}{{ if .enabled }}
- secret: {name: {{ .serverSecret.name }}, items: [{key: {{ .serverSecret.caKey }}, path: ca.crt}]}
{{- if .clientSecret.name }}
- secret: {name: {{ .clientSecret.name }}, items: [{key: {{ .clientSecret.certKey }}, path: tls.crt}, {key: {{ .clientSecret.keyKey }}, path: tls.key}]}
{{- end }}
{{- end }}{{ end }}
{{- end }}

{{- define "mristream.store.uri" -}}
{{- with .Values.store -}}
{{- if .s3.bucket -}}
s3://{{ .s3.bucket }}{{ with .s3.prefix }}/{{ . }}{{ end }}
{{- else if .redis.host -}}
{{ .redis.tls.enabled | ternary "rediss" "redis" }}://{{ .redis.host }}:{{ .redis.port }}/{{ .redis.database }}{{ if .redis.ttlS }}?ttl={{ .redis.ttlS | int64 }}{{ end }}
{{- else -}}
{{ .uri }}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "mristream.store.secrets" -}}
{{- with .Values.store.s3 }}{{ if and .bucket .caSecret.name }}
- secret: {name: {{ .caSecret.name }}, items: [{key: {{ .caSecret.key }}, path: ca.crt}]}
{{- end }}{{ end }}
{{- with .Values.store.redis }}{{ if .host }}
{{- if .passwordSecret.name }}
- secret: {name: {{ .passwordSecret.name }}, items: [{key: {{ .passwordSecret.key }}, path: password}]}
{{- end }}
{{- if and .tls.enabled .tls.caSecret.name }}
- secret: {name: {{ .tls.caSecret.name }}, items: [{key: {{ .tls.caSecret.key }}, path: ca.crt}]}
{{- end }}
{{- if and .tls.enabled .tls.clientSecret.name }}
- secret: {name: {{ .tls.clientSecret.name }}, items: [{key: {{ .tls.clientSecret.certKey }}, path: tls.crt}, {key: {{ .tls.clientSecret.keyKey }}, path: tls.key}]}
{{- end }}
{{- end }}{{ end }}
{{- end }}

{{/* Environment that opens the mask store's bucket. */}}
{{- define "mristream.store.environment" -}}
{{- with .Values.store.s3 }}{{ if .bucket }}
- {name: AWS_REGION, value: {{ .region | quote }}}
{{- with .endpoint }}
- {name: AWS_ENDPOINT_URL, value: {{ . | quote }}}
{{- end }}
{{- if .existingSecret }}
- name: AWS_ACCESS_KEY_ID
  valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .accessKeyIdKey }}}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .secretAccessKeyKey }}}}
{{- end }}
{{- if .caSecret.name }}
- {name: SSL_CERT_FILE, value: /etc/mristream/store/ca.crt}
{{- end }}
{{- end }}{{ end }}
{{- end }}
