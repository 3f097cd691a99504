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

{{/* Labels of a component's objects: (list $ "worker"), or with more of them: (list $ "worker" (dict …)) */}}
{{- define "mristream.labels" -}}
{{- $root := first . -}}
{{- $more := len . | eq 3 | ternary (last .) dict -}}
{{- $own := dict
  "app.kubernetes.io/version" (include "mristream.label" $root.Chart.AppVersion)
  "app.kubernetes.io/managed-by" $root.Release.Service
  "helm.sh/chart" (include "mristream.label" (printf "%s-%s" $root.Chart.Name $root.Chart.Version)) -}}
{{- merge dict (include "mristream.selector" . | fromYaml) $more (include "mristream.podLabels" . | fromYaml) $own | toYaml -}}
{{- end }}

{{/* Labels of a component's pods: no version, which would start them anew where nothing else has changed. */}}
{{- define "mristream.podLabels" -}}
{{- $ours := dict "app.kubernetes.io/part-of" "mristream" -}}
{{- merge dict (include "mristream.selector" . | fromYaml) (first .).Values.commonLabels $ours | toYaml -}}
{{- end }}

{{/* What selects a component's pods: (list $ "worker") */}}
{{- define "mristream.selector" -}}
app.kubernetes.io/name: mristream
app.kubernetes.io/instance: {{ (first .).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* A version as the value of a label: 1.0.0+build has a sign that none may have. */}}
{{- define "mristream.label" -}}
{{- replace "+" "_" . | trunc 63 | trimSuffix "-" -}}
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

{{/* How many of a component may be gone: the API takes one of the two. */}}
{{- define "mristream.disruptionBudget" -}}
{{ omit . (hasKey . "minAvailable" | ternary "maxUnavailable" "") | toYaml }}
{{- end }}

{{- define "mristream.priorityClassName" -}}
{{- .Values.priorityClass.name | default (ternary (include "mristream.fullname" .) "" .Values.priorityClass.create) -}}
{{- end }}
