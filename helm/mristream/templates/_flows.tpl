{{/* What pods may connect to: rules of a NetworkPolicy. Ports follow from addresses where the values have them. */}}

{{/* A rule: (list (peers) (ports)) */}}
{{- define "mristream.flow" -}}
- to: {{ toJson (first .) }}
  ports:
    {{- range last . | uniq }}
    - {protocol: TCP, port: {{ int . }}}
    {{- end }}
{{- end }}

{{/* Of every pod that connects to others: names are looked up. */}}
{{- define "mristream.flow.every" -}}
{{- with .Values.networkPolicy -}}
- to: {{ toJson .dns }}
  ports:
    {{- range .dnsPorts }}
    - {protocol: UDP, port: {{ . }}}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- with .extraEgress }}
{{ toYaml . }}
{{- end }}
{{- end -}}
{{- end }}

{{- define "mristream.flow.kafka" -}}
{{- $ports := list -}}
{{- range splitList "," .Values.kafka.bootstrapServers -}}
{{- $ports = append $ports (splitList ":" (trim .) | last) -}}
{{- end -}}
{{- include "mristream.flow" (list .Values.networkPolicy.outside.kafka (concat $ports .Values.networkPolicy.kafkaPorts)) -}}
{{- with .Values.kafka.sasl.oauthTokenUrl }}
{{ include "mristream.flow" (list $.Values.networkPolicy.outside.login (list (include "mristream.port" .))) }}
{{- end }}
{{- end }}

{{/* Where masks go, and where scans that come by reference lie; nothing if both are volumes. */}}
{{- define "mristream.flow.store" -}}
{{- $ports := list -}}
{{- $bucket := .Values.store.s3.endpoint | empty | ternary "443" (include "mristream.port" .Values.store.s3.endpoint) -}}
{{- with .Values.store -}}
{{- if .redis.host }}{{ $ports = append $ports .redis.port }}{{ end -}}
{{- if .s3.bucket }}{{ $ports = append $ports $bucket }}{{ end -}}
{{- if and .uri (not (hasPrefix "file:" .uri)) }}{{ $ports = append $ports "443" }}{{ end -}}
{{- end -}}
{{- range .Values.allowedPrefixes }}{{ $ports = append $ports (hasPrefix "s3:" . | ternary $bucket "443") }}{{ end -}}
{{- with concat $ports .Values.networkPolicy.storePorts -}}
{{- include "mristream.flow" (list $.Values.networkPolicy.outside.store .) -}}
{{- end -}}
{{- end }}

{{- define "mristream.flow.plans" -}}
{{- with .Values.networkPolicy -}}
{{- include "mristream.flow" (list .outside.plans (prepend .plansPorts 443)) -}}
{{- end -}}
{{- end }}

{{- define "mristream.flow.tracing" -}}
{{- include "mristream.flow" (list .Values.networkPolicy.outside.tracing (list (include "mristream.port" .Values.tracing.otlpEndpoint))) -}}
{{- end }}

{{/* Port of an address such as https://host:443/folder */}}
{{- define "mristream.port" -}}
{{- $url := urlParse . -}}
{{- regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (eq $url.scheme "http" | ternary "80" "443") -}}
{{- end }}
