{{/* Beginning of the names of all objects. */}}
{{- define "wfe.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- (contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name)) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels of every object. */}}
{{- define "wfe.labels" -}}
app.kubernetes.io/part-of: {{ default .Chart.Name .Values.nameOverride | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The metadata of an object of one program: (list . "controller"), with a suffix of its name as third element. */}}
{{- define "wfe.metadata" -}}
name: {{ include "wfe.name" . }}
{{ include "wfe.componentLabels" . }}
{{- end -}}

{{- define "wfe.componentLabels" -}}
{{- $root := index . 0 }}{{ $component := index . 1 -}}
labels:
  {{- include "wfe.selector" (list $root $component) | nindent 2 }}
  {{- include "wfe.labels" $root | nindent 2 }}
{{- end -}}

{{- define "wfe.name" -}}
{{- $suffix := gt (len .) 2 | ternary (printf "-%s" (last .)) "" -}}
{{- include "wfe.fullname" (index . 0) }}-{{ index . 1 }}{{ $suffix -}}
{{- end -}}

{{/* Labels that never change: the selector of a Deployment is immutable. */}}
{{- define "wfe.selector" -}}
app.kubernetes.io/name: wfe-{{ index . 1 }}
app.kubernetes.io/component: {{ index . 1 }}
{{- if not (eq (len .) 2) }}{{ fail "wfe.selector takes two arguments" }}{{ end }}
{{- end -}}

{{- define "wfe.matchLabels" -}}
{{ include "wfe.selector" . }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name | quote }}
{{- end -}}

{{- define "wfe.serviceAccountName" -}}
{{- $root := index . 0 }}{{ $component := index . 1 -}}
{{- default (include "wfe.name" .) (get $root.Values $component).serviceAccount.name -}}
{{- end -}}

{{/* User name of the controller, for policies. */}}
{{- define "wfe.controllerUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "wfe.serviceAccountName" (list . "controller") }}
{{- end -}}

{{- define "wfe.image" -}}
{{- $root := index . 0 }}{{ $image := (get $root.Values (index . 1)).image -}}
{{- $registry := default $image.registry $root.Values.global.imageRegistry -}}
{{- if not $registry -}}
{{- fail "global.imageRegistry: set the registry that has the images kubernaut/wfe-controller and kubernaut/wfe-webhook (`make images REGISTRY=…` builds and pushes them)" -}}
{{- end -}}
{{ $registry }}/{{ $image.repository }}{{ with $image.digest }}@{{ . }}{{ else }}:{{ $image.tag | default $root.Chart.AppVersion }}{{ end }}
{{- end -}}

{{/* Secret with the webhook's certificate. */}}
{{- define "wfe.certificateSecret" -}}
{{- if eq .Values.certificates.mode "provided" -}}
{{- required "certificates.provided.secretName: name the Secret with tls.crt and tls.key" .Values.certificates.provided.secretName -}}
{{- else -}}
{{- /* One Secret for each mode: its type cannot change. */ -}}
{{- include "wfe.fullname" . }}-webhook-{{ eq .Values.certificates.mode "certManager" | ternary "cert-manager" "tls" }}
{{- end -}}
{{- end -}}

{{- define "wfe.catalogConfigMap" -}}
{{- default (printf "%s-catalog" (include "wfe.fullname" .)) .Values.catalog.existingConfigMap -}}
{{- end -}}

{{/* Port of a URL. */}}
{{- define "wfe.portOf" -}}
{{- regexFind "[0-9]+$" (regexFind ":[0-9]+$" (urlParse .).host) | default (hasPrefix "https" . | ternary "443" "80") -}}
{{- end -}}

{{- define "wfe.catalogNamespace" -}}
{{- default .Release.Namespace .Values.catalog.namespace -}}
{{- end -}}

{{/* Flags for Data Storage. */}}
{{- define "wfe.dataStorageArgs" -}}
{{- with .Values.dataStorage -}}
- --data-storage-url={{ .url }}
- --data-storage-service-account={{ .serviceAccount.name }}
{{- if .caConfigMap }}
- --data-storage-ca=/etc/wfe/data-storage/{{ .caKey }}
{{- end }}
{{- if .plainHttp }}
- --data-storage-plain-http
{{- end }}
{{- end }}
{{- end -}}

{{/* Volume mounts of a program for the catalog and Data Storage: list of root and whether it talks to Data Storage. */}}
{{- define "wfe.peerMounts" -}}
{{- $root := index . 0 -}}
{{- if eq $root.Values.catalog.source "configMap" }}
- {name: catalog, mountPath: /etc/wfe/catalog, readOnly: true}
{{- end }}
{{- if and (index . 1) $root.Values.dataStorage.caConfigMap }}
- {name: data-storage-ca, mountPath: /etc/wfe/data-storage, readOnly: true}
{{- end }}
{{- end -}}

{{/* The volumes of these. */}}
{{- define "wfe.peerVolumes" -}}
{{- $root := index . 0 -}}
{{- if eq $root.Values.catalog.source "configMap" }}
- name: catalog
  configMap: {name: {{ include "wfe.catalogConfigMap" $root }}}
{{- end }}
{{- if and (index . 1) $root.Values.dataStorage.caConfigMap }}
- name: data-storage-ca
  configMap: {name: {{ $root.Values.dataStorage.caConfigMap }}}
{{- end }}
{{- end -}}

{{/* Flags of both programs. */}}
{{- define "wfe.sharedArgs" -}}
{{- $root := index . 0 }}{{ $values := get $root.Values (index . 1) -}}
- --execution-namespace={{ $root.Values.executionNamespace.name }}
- --default-service-account={{ $root.Values.runner.name }}
{{- if eq $root.Values.catalog.source "configMap" }}
- --catalog-dir=/etc/wfe/catalog
{{- else if eq $root.Values.catalog.source "objects" }}
- --catalog-namespace={{ include "wfe.catalogNamespace" $root }}
{{- end }}
{{- range $root.Values.watchNamespaces }}
- --watch-namespace={{ . }}
{{- end }}
- --health-addr={{ $root.Values.listenAddress }}:8081
- --metrics-addr={{ $root.Values.listenAddress }}:9090
- --log-format={{ $values.logFormat }}
- --log-filter={{ $values.logFilter }}
{{- end -}}

{{/* What the pods of both programs have in common, apart from their container. */}}
{{- define "wfe.podSpec" -}}
{{- $root := index . 0 }}{{ $component := index . 1 }}{{ $values := get $root.Values $component -}}
serviceAccountName: {{ include "wfe.serviceAccountName" . }}
{{- with concat $root.Values.global.imagePullSecrets $values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml $values.podSecurityContext | nindent 2 }}
terminationGracePeriodSeconds: {{ int64 $values.terminationGracePeriodSeconds }}
affinity:
  {{- if $values.affinity }}
  {{- toYaml $values.affinity | nindent 2 }}
  {{- else }}
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 100
      podAffinityTerm:
        topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            {{- include "wfe.matchLabels" . | nindent 12 }}
  {{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{- define "wfe.probes" -}}
{{- $values := get (index . 0).Values (index . 1) -}}
livenessProbe:
  httpGet: {path: /healthz, port: health}
  {{- toYaml $values.livenessProbe | nindent 2 }}
readinessProbe:
  httpGet: {path: /readyz, port: health}
  {{- toYaml $values.readinessProbe | nindent 2 }}
{{- end -}}

{{/* Rules of a file, as a Role or ClusterRole has them, without the comments. */}}
{{- define "wfe.rules" -}}
{{- $root := index . 0 -}}
{{- range rest . }}
{{ $root.Files.Get (printf "files/%s" .) | fromYamlArray | toYaml }}
{{- end }}
{{- end -}}

{{/* A Role and its binding to a program: dict root, component, namespace, suffix, rules. */}}
{{- define "wfe.role" -}}
{{- $name := include "wfe.name" (list .root .component .suffix) -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  {{- include "wfe.metadata" (list .root .component .suffix) | nindent 2 }}
  namespace: {{ .namespace }}
rules:
{{- .rules | nindent 0 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  {{- include "wfe.metadata" (list .root .component .suffix) | nindent 2 }}
  namespace: {{ .namespace }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ $name }}
subjects:
- kind: ServiceAccount
  name: {{ .account | default (include "wfe.serviceAccountName" (list .root .component)) }}
  namespace: {{ .root.Release.Namespace }}
{{- end -}}
