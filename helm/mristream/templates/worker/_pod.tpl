{{/* What a pod needs to do what a worker does: the worker itself, and `mristream doctor`, which tries it. */}}

{{- define "mristream.worker.environment" -}}
env:
  - {name: MRISTREAM_CONFIG, value: /etc/mristream/settings/mristream.yaml}
  {{- with include "mristream.store.environment" . | trim }}{{ . | nindent 2 }}{{ end }}
  {{- with .Values.worker.extraEnv }}{{ toYaml . | nindent 2 }}{{ end }}
{{- with .Values.store.environmentSecret }}
envFrom:
  - secretRef: {name: {{ . }}}
{{- end }}
{{- end }}

{{- define "mristream.worker.mounts" -}}
- {name: settings, mountPath: /etc/mristream/settings, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- if include "mristream.kafka.secrets" . }}
- {name: kafka, mountPath: /etc/mristream/kafka, readOnly: true}
{{- end }}
{{- if include "mristream.triton.secrets" . }}
- {name: triton, mountPath: /etc/mristream/triton, readOnly: true}
{{- end }}
{{- if include "mristream.store.secrets" . }}
- {name: store, mountPath: /etc/mristream/store, readOnly: true}
{{- end }}
{{- if .Values.store.claim }}
- {name: masks, mountPath: /masks}
{{- end }}
{{- end }}

{{- define "mristream.worker.volumes" -}}
- name: settings
  configMap: {name: {{ include "mristream.fullname" . }}-worker}
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
{{- with include "mristream.kafka.secrets" . }}
- name: kafka
  projected:
    defaultMode: 0440
    sources: {{- . | trim | nindent 6 }}
{{- end }}
{{- with include "mristream.triton.secrets" . }}
- name: triton
  projected:
    defaultMode: 0440
    sources: {{- . | trim | nindent 6 }}
{{- end }}
{{- with include "mristream.store.secrets" . }}
- name: store
  projected:
    defaultMode: 0440
    sources: {{- . | trim | nindent 6 }}
{{- end }}
{{- with .Values.store.claim }}
- name: masks
  persistentVolumeClaim: {claimName: {{ . }}}
{{- end }}
{{- end }}
