{{/* Names and labels. Everything else stands in the object that it is for. */}}

{{- define "mristream.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 31 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 31 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 31 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* Labels of a component: (list $ "worker") */}}
{{- define "mristream.labels" -}}
{{- $root := first . -}}
{{ include "mristream.selector" . }}
app.kubernetes.io/part-of: mristream
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* What selects a component's pods: (list $ "worker") */}}
{{- define "mristream.selector" -}}
{{- $root := first . -}}
app.kubernetes.io/name: mristream
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ last . }}
{{- end }}

{{/* An image's name: (list $ .Values.worker.image) */}}
{{- define "mristream.image" -}}
{{- $root := first . -}}
{{- $image := last . -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* Triton's image: NVIDIA's with our models, or the small one for CPUs. */}}
{{- define "mristream.triton.image" -}}
{{- $own := ternary "ghcr.io/mristream/triton" "ghcr.io/mristream/triton-cpu" (eq .Values.triton.profile "gpu") -}}
{{- include "mristream.image" (list . (merge (dict "repository" (.Values.triton.image.repository | default $own)) .Values.triton.image)) -}}
{{- end }}

{{- define "mristream.priorityClassName" -}}
{{- .Values.priorityClass.name | default (ternary (include "mristream.fullname" .) "" .Values.priorityClass.create) -}}
{{- end }}
