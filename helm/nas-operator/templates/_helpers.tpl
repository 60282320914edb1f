{{/* The name of the operator's own objects: the release's, so that two releases do not meet. */}}
{{- define "nas.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/*
What the selectors of a component ask for. A Deployment's cannot be changed, so nothing is ever added here.
Arguments: the root context and the component.
*/}}
{{- define "nas.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/*
Labels and annotations of an object or of a pod template.
Arguments: the root context, the component, and, where there are any, `labels` and `annotations` of its own, which take
precedence over the common ones. The chart's own labels take precedence over all.
*/}}
{{- define "nas.metadata" -}}
{{- $root := index . 0 -}}
{{- $own := index (append . dict) 2 -}}
{{- $ours := include "nas.selector" . | fromYaml -}}
{{- $_ := set $ours "app.kubernetes.io/version" $root.Chart.AppVersion -}}
{{- $_ := set $ours "app.kubernetes.io/managed-by" $root.Release.Service -}}
{{- $_ := set $ours "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version) -}}
labels: {{- merge $ours ($own.labels | default dict) $root.Values.commonLabels | toYaml | nindent 2 }}
{{- with merge dict ($own.annotations | default dict) $root.Values.commonAnnotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Arguments: a repository, a digest (may be empty) and a tag, which counts where there is no digest. */}}
{{- define "nas.reference" -}}
{{- $digest := index . 1 -}}
{{- index . 0 }}{{ if $digest }}@{{ $digest }}{{ else }}:{{ index . 2 }}{{ end }}
{{- end -}}

{{/* Arguments: the root context and one of operator, controller, trainer. */}}
{{- define "nas.image" -}}
{{- $root := index . 0 -}}
{{- $images := $root.Values.images -}}
{{- $image := index $images (index . 1) -}}
{{- with $images.registry }}{{ . }}/{{ end -}}
{{- include "nas.reference" (list $image.repository $image.digest ($image.tag | default $images.tag | default $root.Chart.AppVersion)) -}}
{{- end -}}

{{- define "nas.pullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* On which nodes the operator runs, and with it the pod of `helm test`. */}}
{{- define "nas.nodes" -}}
{{- with .Values.operator.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.operator.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What the `restricted` Pod Security Standard asks of a pod, and of each container. */}}
{{- define "nas.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "nas.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/*
What puts a policy into force where the operator works: arguments are the root context and the policy's name, which is the
binding's, too.
*/}}
{{- define "nas.policyBinding" -}}
{{- $root := index . 0 }}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ index . 1 }}
  {{- include "nas.metadata" (list $root "admission") | nindent 2 }}
spec:
  policyName: {{ index . 1 }}
  validationActions: [Deny]
  {{- with $root.Values.watchNamespaces }}
  matchResources:
    namespaceSelector:
      matchExpressions:
        - {key: kubernetes.io/metadata.name, operator: In, values: {{ toJson . }}}
  {{- end }}
{{- end -}}
