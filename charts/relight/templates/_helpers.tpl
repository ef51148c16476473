{{- define "relight.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "relight.fullname" -}}
{{- $name := include "relight.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "relight.coordinator" -}}
{{- include "relight.fullname" . -}}-coordinator
{{- end -}}

{{- define "relight.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "relight.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "relight.selectorLabels" -}}
app.kubernetes.io/name: {{ include "relight.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "relight.labels" -}}
{{ include "relight.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- /* A reference to .image, with the chart's appVersion where it names no tag: include "relight.image" (list $ .Values.image) */ -}}
{{- define "relight.image" -}}
{{- $chart := (index . 0).Chart -}}
{{- with index . 1 -}}
{{ .repository }}:{{ default $chart.AppVersion .tag }}{{ with .digest }}@{{ . }}{{ end }}
{{- end -}}
{{- end -}}

{{- /* Where training pods may connect to beside each other, as JSON: DNS, the coordinator, and what the values name. */ -}}
{{- define "relight.trainingEgress" -}}
{{- if .Values.networkPolicy.jobs.egress -}}
{{- $ports := list (dict "protocol" "UDP" "port" 53) (dict "protocol" "TCP" "port" 53) -}}
{{- $operator := dict "namespaceSelector" (dict) "podSelector" (dict "matchLabels" (include "relight.selectorLabels" . | fromYaml)) -}}
{{- $coordinator := dict "to" (list $operator) "ports" (list (dict "protocol" "TCP" "port" 8443)) -}}
{{- concat (list (dict "ports" $ports) $coordinator) .Values.networkPolicy.jobs.egress | toJson -}}
{{- else -}}
[]
{{- end -}}
{{- end -}}
