{{/* The worker's settings file (docs/settings.md). `settings` has nothing that is here already: see checks.yaml. */}}
{{- define "mristream.settings" -}}
{{- $own := include "mristream.settings.own" . | fromYaml -}}
{{- toYaml (mergeOverwrite $own (deepCopy .Values.settings)) -}}
{{- end }}

{{- define "mristream.settings.own" -}}
kafka: {{- include "mristream.kafka.settings" . | nindent 2 }}
triton:
  url: {{ include "mristream.fullname" . }}-triton:8001
  {{- with .Values.models.use }}
  version: {{ . | quote }}
  {{- end }}
  {{- with .Values.triton.tls }}{{ if .enabled }}
  tls: true
  ca_file: /etc/mristream/triton/ca.crt
  {{- if .clientSecret.name }}
  cert_file: /etc/mristream/triton/tls.crt
  key_file: /etc/mristream/triton/tls.key
  {{- end }}
  {{- end }}{{ end }}
source:
  allowed_prefixes: {{ toJson .Values.allowedPrefixes }}
store:
  uri: {{ include "mristream.store.uri" . | quote }}
  {{- with .Values.store.redis }}{{ if .host }}
  {{- with .username }}
  username: {{ . | quote }}
  {{- end }}
  {{- if .passwordSecret.name }}
  password_file: /etc/mristream/store/password
  {{- end }}
  {{- if and .tls.enabled .tls.caSecret.name }}
  ca_file: /etc/mristream/store/ca.crt
  {{- end }}
  {{- if and .tls.enabled .tls.clientSecret.name }}
  cert_file: /etc/mristream/store/tls.crt
  key_file: /etc/mristream/store/tls.key
  {{- end }}
  {{- end }}{{ end }}
{{- with .Values.tracing }}{{ if .otlpEndpoint }}
tracing:
  otlp_endpoint: {{ .otlpEndpoint | quote }}
  sample_ratio: {{ divf .samplePercent 100 }}
{{- end }}{{ end }}
worker:
  drain_timeout_s: {{ .Values.worker.drainTimeoutS }}
  http_port: 8080
  log_level: {{ .Values.worker.logLevel }}
{{- end }}
