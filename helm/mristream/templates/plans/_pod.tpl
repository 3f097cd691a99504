{{/* The pod that builds and checks plans on one kind of GPU: (list $ (one of plans.gpus)) */}}
{{- define "mristream.plans.pod" -}}
{{- $gpu := last . -}}
{{- with first . -}}
{{- $resources := dict "limits" (dict ($gpu.resource | default .Values.triton.gpu.resource) 1) -}}
metadata:
  labels: {{- include "mristream.podLabels" (list . "plans") | nindent 4 }}
spec:
  # What failed stays, with what it said.
  restartPolicy: Never
  serviceAccountName: {{ include "mristream.fullname" . }}-plans
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.triton.gpu.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with .Values.plans.job.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  terminationGracePeriodSeconds: 30
  securityContext: {{- include "mristream.podSecurity" .Values.podSecurity.tritonUser | nindent 4 }}
  {{- with $gpu.nodeSelector | default .Values.triton.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $gpu.tolerations | default .Values.triton.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  initContainers:
    {{- include "mristream.models.init" . | nindent 4 }}
    {{- include "mristream.plans.step" (list . "build" $resources) | nindent 4 }}
  containers:
    {{- include "mristream.plans.step" (list . "verify" $resources) | nindent 4 }}
  volumes:
    - name: tmp
      emptyDir: {sizeLimit: 2Gi}
    - name: models
      emptyDir: {sizeLimit: 2Gi}
    {{- include "mristream.plans.volumes" . | nindent 4 }}
{{- end -}}
{{- end }}
