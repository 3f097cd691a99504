{{/* Models and plans: what Triton's init containers and the jobs that build plans have in common. */}}

{{/* Init containers that copy the model repository out of Triton's image and choose the versions in it. */}}
{{- define "mristream.models.init" -}}
- name: copy-models
  image: {{ include "mristream.triton.image" . }}
  imagePullPolicy: {{ .Values.triton.image.pullPolicy }}
  command: [cp, --recursive, /models/., /copy]
  resources:
    requests: {cpu: 100m, memory: 64Mi}
    limits: {memory: 256Mi}
  securityContext: {{- include "mristream.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - {name: models, mountPath: /copy}
{{- if .Values.models.load }}
- name: load-versions
  image: {{ include "mristream.image" (list . .Values.worker.image) }}
  imagePullPolicy: {{ .Values.worker.image.pullPolicy }}
  command: [mristream]
  args: [load{{ range .Values.models.load }}, {{ . | quote }}{{ end }}, --model-repository, /models]
  terminationMessagePolicy: FallbackToLogsOnError
  resources:
    requests: {cpu: 100m, memory: 256Mi}
    limits: {memory: 512Mi}
  securityContext: {{- include "mristream.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - {name: models, mountPath: /models}
{{- end }}
{{- end }}

{{- define "mristream.plans.options" -}}
- --model-repository=/models
- --precision={{ .Values.plans.precision }}
- --best-batch={{ .Values.plans.bestBatch }}
- --max-batch={{ .Values.plans.maxBatch }}
{{- with .Values.plans.cache.uri }}
- --shared={{ . }}
{{- end }}
{{- end }}

{{- define "mristream.plans.environment" -}}
- {name: MRISTREAM_CACHE, value: /plans}
{{- if .Values.plans.cache.caSecret.name }}
- {name: SSL_CERT_FILE, value: /etc/mristream/plans/ca.crt}
{{- end }}
{{- end }}

{{- define "mristream.plans.authority.mount" -}}
{{- if .Values.plans.cache.caSecret.name -}}
- {name: plans-authority, mountPath: /etc/mristream/plans, readOnly: true}
{{- end }}
{{- end }}

{{- define "mristream.plans.volumes" -}}
{{- with .Values.plans.cache -}}
- name: plans
  {{- if .uri }}
  emptyDir: {sizeLimit: 2Gi}
  {{- else }}
  persistentVolumeClaim: {claimName: {{ .claim | default (printf "%s-plans" (include "mristream.fullname" $)) }}}
  {{- end }}
{{- if .caSecret.name }}
- name: plans-authority
  secret: {secretName: {{ .caSecret.name }}, items: [{key: {{ .caSecret.key }}, path: ca.crt}]}
{{- end }}
{{- end -}}
{{- end }}

{{/* A container that runs `mristream plan`: (list $ "build" (resources of the GPU)) */}}
{{- define "mristream.plans.step" -}}
{{- $root := index . 0 -}}
{{- $step := index . 1 -}}
{{- $resources := index . 2 -}}
{{- with $root -}}
- name: {{ $step }}-plans
  image: {{ include "mristream.image" (list . .Values.trainer.image) }}
  imagePullPolicy: {{ .Values.trainer.image.pullPolicy }}
  command: [mristream]
  args:
    - plan
    - {{ $step }}
    {{- include "mristream.plans.options" . | nindent 4 }}
  env: {{- include "mristream.plans.environment" . | nindent 4 }}
  {{- with .Values.plans.cache.environmentSecret }}
  envFrom:
    - secretRef: {name: {{ . }}}
  {{- end }}
  # What it says last, `kubectl describe pod` shows.
  terminationMessagePolicy: FallbackToLogsOnError
  resources: {{- toYaml (mergeOverwrite (deepCopy .Values.plans.job.resources) $resources) | nindent 4 }}
  securityContext: {{- include "mristream.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - {name: models, mountPath: /models, readOnly: true}
    - {name: tmp, mountPath: /tmp}
    - {name: plans, mountPath: /plans}
    {{- include "mristream.plans.authority.mount" . | nindent 4 }}
{{- end -}}
{{- end }}
