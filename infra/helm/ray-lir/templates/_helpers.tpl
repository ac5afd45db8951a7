{{/* Image of a pod; the argument is a list of the root context and the number of GPUs. */}}
{{- define "ray-lir.image" -}}
{{- $root := index . 0 -}}
{{- $tag := default $root.Chart.AppVersion $root.Values.image.tag -}}
{{- printf "%s:%s%s" $root.Values.image.repository $tag (ternary "-gpu" "" (gt (int (index . 1)) 0)) -}}
{{- end }}

{{- define "ray-lir.labels" -}}
{app.kubernetes.io/name: ray-lir}
{{- end }}

{{/* Requests and limits are equal, because Ray plans with what it was given. The argument has cpu, memory and perhaps gpus. */}}
{{- define "ray-lir.resources" -}}
{{- $gpus := int (default 0 .gpus) -}}
{{- $each := printf "cpu: %q, memory: %s" .cpu .memory -}}
{{- if gt $gpus 0 }}{{ $each = printf "%s, nvidia.com/gpu: %q" $each (toString $gpus) }}{{ end -}}
requests: { {{- $each -}} }
limits: { {{- $each -}} }
{{- end }}

{{/* With these, calls of Ray Serve take a third of the time: docs/service.md. */}}
{{- define "ray-lir.env" -}}
- {name: RAY_SERVE_THROUGHPUT_OPTIMIZED, value: "1"}
- {name: RAY_SERVE_ENABLE_HA_PROXY, value: "1"}
# the image's wrapper limits HAProxy's statistics (ports 8404 and 9101) to the pod
- {name: RAY_SERVE_HAPROXY_BINARY_PATH, value: /usr/local/bin/ray-lir-haproxy}
- {name: RAY_LIR_HAPROXY, value: /home/ray/haproxy}
- {name: RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE, value: "1"}
- {name: RAY_SERVE_CONTROL_LOOP_INTERVAL_S, value: "1"}
- {name: RAY_SERVE_METRICS_EXPORT_INTERVAL_MS, value: "1000"}
- {name: GLIBC_TUNABLES, value: glibc.malloc.hugetlb=1}
{{- end }}

{{- define "ray-lir.mounts" -}}
- {name: index, mountPath: {{ .Values.index.mountPath }}, readOnly: true}
- {name: tokens, mountPath: /mnt/secrets, readOnly: true}
{{- end }}

{{- define "ray-lir.volumes" -}}
- name: index
  persistentVolumeClaim: {claimName: {{ .Values.index.claim }}, readOnly: true}
- name: tokens
  secret: {secretName: {{ .Values.tokens.secret }}}
{{- end }}

{{/* Where GPU nodes are, and the taint that they usually have. The argument has gpus and nodeSelector. */}}
{{- define "ray-lir.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if gt (int (default 0 .gpus)) 0 }}
tolerations:
  - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}
{{- end }}
{{- end }}
