{{/* Names. 44 leaves room for the longest suffix, and for what Kubernetes adds to pods */}}

{{- define "fd.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "fd.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 44 | trimSuffix "-" -}}
{{- else if contains (include "fd.name" .) .Release.Name -}}
{{- .Release.Name | trunc 44 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "fd.name" .) | trunc 44 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "fd.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride -}}
{{- end -}}

{{- define "fd.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "fd.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "fd.image" -}}
{{- $name := .Values.image.repository -}}
{{- with default (default (dict) .Values.global).imageRegistry .Values.image.registry }}{{ $name = printf "%s/%s" . $name }}{{ end -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $name .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* Labels. Selectors can't be changed later: name, instance and component, nothing that moves. */}}

{{- define "fd.selectorLabels" -}}
app.kubernetes.io/name: {{ include "fd.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "fd.labels" -}}
{{ include "fd.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: {{ .root.Chart.Name }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* A pod's: without the chart's version, which would restart pods for nothing */}}
{{- define "fd.podLabels" -}}
{{ include "fd.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: {{ .root.Chart.Name }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* metadata of an object: root, component, and optionally suffix, labels, annotations, namespace */}}
{{- define "fd.metadata" -}}
name: {{ include "fd.fullname" .root }}{{ with .suffix }}-{{ . }}{{ end }}
namespace: {{ default (include "fd.namespace" .root) .namespace }}
labels:
  {{- include "fd.labels" . | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (default (dict) .annotations) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Numbers, durations and sizes as dispatcher/config/units.py reads them */}}

{{/* A number or text as text. Helm reads numbers as float64, which toString and {{ }} write as 1e+06 from a million on. */}}
{{- define "fd.text" -}}
{{- ternary . (toJson .) (kindIs "string" .) -}}
{{- end -}}

{{/* "1m30s", "500ms", "25" or 25 to milliseconds */}}
{{- define "fd.milliseconds" -}}
{{- $text := include "fd.text" . -}}
{{- if regexMatch "^[0-9]+(\\.[0-9]+)?$" $text -}}
{{- mulf (float64 $text) 1000 | ceil | int64 -}}
{{- else if not (regexMatch "^([0-9]+(\\.[0-9]+)?(ms|s|m|h|d))+$" $text) -}}
{{- fail (printf "%q is not a duration: write it as 250ms, 10s, 5m, 24h, or 1h30m" $text) -}}
{{- else -}}
{{- $unit := dict "ms" 1.0 "s" 1000.0 "m" 60000.0 "h" 3600000.0 "d" 86400000.0 -}}
{{- $sum := 0.0 -}}
{{- range regexFindAll "[0-9]+(\\.[0-9]+)?(ms|s|m|h|d)" $text -1 -}}
{{- $sum = addf $sum (mulf (float64 (regexFind "^[0-9.]+" .)) (get $unit (regexFind "[a-z]+$" .))) -}}
{{- end -}}
{{- $sum | ceil | int64 -}}
{{- end -}}
{{- end -}}

{{/* "64KiB", "1 MB" or 65536 to bytes */}}
{{- define "fd.bytes" -}}
{{- $text := include "fd.text" . -}}
{{- $units := dict "" 1 "B" 1 "kB" 1000 "KiB" 1024 "MB" 1000000 "MiB" 1048576 "GB" 1000000000 "GiB" 1073741824 -}}
{{- $unit := regexFind "[A-Za-z]*$" $text -}}
{{- if not (and (regexMatch "^[0-9]+ ?[A-Za-z]*$" $text) (hasKey $units $unit)) -}}
{{- fail (printf "%q is not a size: write it as 20kB, 64KiB, 128MiB, or a number of bytes" $text) -}}
{{- end -}}
{{- mul (regexFind "^[0-9]+" $text) (get $units $unit) -}}
{{- end -}}

{{/* milliseconds to the label of a retry tier: 90000 to 1m30s */}}
{{- define "fd.tierLabel" -}}
{{- $ms := int64 . -}}
{{- if or (lt $ms 1000) (mod $ms 1000) -}}
{{- printf "%dms" $ms -}}
{{- else -}}
{{- $seconds := div $ms 1000 -}}
{{- with div $seconds 3600 }}{{ printf "%dh" . }}{{ end -}}
{{- with div (mod $seconds 3600) 60 }}{{ printf "%dm" . }}{{ end -}}
{{- with mod $seconds 60 }}{{ printf "%ds" . }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* A setting, or its default if it is missing or null: root, group, key, default */}}
{{- define "fd.setting" -}}
{{- $group := default (dict) (get .root.Values.config .group) -}}
{{- $given := get $group .key -}}
{{- include "fd.text" (ternary $given .default (and (hasKey $group .key) (not (kindIs "invalid" $given)))) -}}
{{- end -}}

{{- /* whether there is a Service for the ops port: "true" or nothing */}}
{{- define "fd.hasOpsService" -}}
{{- if or .Values.service.enabled .Values.metrics.serviceMonitor.enabled (eq .Values.workload.kind "StatefulSet") .Values.console.enabled }}true{{ end }}
{{- end -}}
{{- define "fd.historyStore" -}}{{ include "fd.setting" (dict "root" . "group" "history" "key" "store" "default" "sql") }}{{- end -}}
{{- /* whether the console fills the history store; taken for granted if the chart does not know the settings: "true" or nothing */}}
{{- define "fd.consoleEmbedsHistory" -}}
{{- $history := default (dict) .Values.config.history -}}
{{- $isOn := and (or $history.url .Values.existingConfigMap) (eq (include "fd.historyStore" .) "sql") -}}
{{- if and .Values.console.enabled (not .Values.history.enabled) $isOn (dig "embedded" true $history) }}true{{ end -}}
{{- end -}}
{{- define "fd.opsPort" -}}{{ include "fd.setting" (dict "root" . "group" "ops" "key" "port" "default" 9090) }}{{- end -}}
{{/* https if the ops port has TLS */}}
{{- define "fd.opsScheme" -}}{{ ternary "https" "http" (not (empty (dig "ops" "tls" "" .Values.config))) }}{{- end -}}
{{/* A probe of the ops port: root, path */}}
{{- define "fd.opsProbe" -}}
httpGet: {path: {{ .path }}, port: ops{{ if eq (include "fd.opsScheme" .root) "https" }}, scheme: HTTPS{{ end }}}
{{- end -}}
{{- define "fd.consolePort" -}}{{ include "fd.setting" (dict "root" . "group" "console" "key" "port" "default" 8080) }}{{- end -}}
{{/* URL of the console for browsers, unless the settings have one: that of the Ingress or the route */}}
{{- define "fd.publicUrl" -}}
{{- with .Values.console -}}
{{- if not (default (dict) $.Values.config.console).public_url -}}
{{- if .ingress.enabled -}}
{{ ternary "https" "http" (not (empty .ingress.tls)) }}://{{ first .ingress.hosts }}
{{- else if and .httpRoute.enabled .httpRoute.hostnames -}}
https://{{ first .httpRoute.hostnames }}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- define "fd.store" -}}{{ include "fd.setting" (dict "root" . "group" "webhooks" "key" "store" "default" "yaml") }}{{- end -}}
{{/* What the names of the dispatcher's own topics begin with */}}
{{- define "fd.topicPrefix" -}}
{{- $group := include "fd.setting" (dict "root" . "group" "kafka" "key" "group_id" "default" "feedback-dispatcher") -}}
{{- include "fd.setting" (dict "root" . "group" "kafka" "key" "topic_prefix" "default" $group) -}}
{{- end -}}

{{- define "fd.webhooksPath" -}}
{{- include "fd.setting" (dict "root" . "group" "webhooks" "key" "path" "default" "/etc/webhooks.d") -}}
{{- end -}}

{{/* dispatcher.yaml */}}
{{- define "fd.settings" -}}
{{- $own := dict "apiVersion" "dispatcher/v1" "webhooks" (dict "store" (include "fd.store" .)) -}}
{{- if eq (include "fd.store" .) "yaml" }}{{ $_ := set $own.webhooks "path" (include "fd.webhooksPath" .) }}{{ end -}}
{{- toYaml (mergeOverwrite $own (deepCopy .Values.config)) -}}
{{- end -}}

{{- define "fd.settingsConfigMap" -}}
{{- default (printf "%s-settings" (include "fd.fullname" .)) .Values.existingConfigMap -}}
{{- end -}}

{{/* Seconds that a drain can take: the requests' last, and closing down */}}
{{- define "fd.gracePeriod" -}}
{{- $drain := include "fd.milliseconds" (include "fd.setting" (dict "root" . "group" "delivery" "key" "drain_timeout" "default" "25s")) -}}
{{- $timeout := include "fd.milliseconds" (include "fd.setting" (dict "root" . "group" "delivery" "key" "timeout" "default" "10s")) -}}
{{- $needed := add (ceil (divf (add $drain $timeout) 1000.0) | int64) 10 -}}
{{- $given := .Values.terminationGracePeriodSeconds -}}
{{- if kindIs "invalid" $given -}}
{{- $needed -}}
{{- else if lt (int64 $given) $needed -}}
{{- fail (printf "terminationGracePeriodSeconds: %d is too short: the pod would be killed while it drains. Leave it out, or set at least %d (delivery.drain_timeout + delivery.timeout + 10)." (int64 $given) $needed) -}}
{{- else -}}
{{- int64 $given -}}
{{- end -}}
{{- end -}}

{{/* Parts of pods */}}

{{/* A pod's spec with `podSpec` put over it: root, spec (text) */}}
{{- define "fd.podSpec" -}}
{{- if .root.Values.podSpec -}}
{{- toYaml (mergeOverwrite (fromYaml .spec) (deepCopy .root.Values.podSpec)) -}}
{{- else -}}
{{- .spec | trim -}}
{{- end -}}
{{- end -}}

{{/* What every pod of ours has: security, accounts, placement */}}
{{- define "fd.podCommon" -}}
serviceAccountName: {{ include "fd.serviceAccountName" . }}
automountServiceAccountToken: {{ .Values.serviceAccount.automount }}
enableServiceLinks: false
{{- $secrets := list }}
{{- range concat .Values.imagePullSecrets (default (list) (default (dict) .Values.global).imagePullSecrets) }}
{{- $secrets = append $secrets (ternary (dict "name" .) . (kindIs "string" .)) }}
{{- end }}
{{- with $secrets | uniq }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.schedulerName }}
schedulerName: {{ . }}
{{- end }}
{{- with .Values.dnsPolicy }}
dnsPolicy: {{ . }}
{{- end }}
{{- with .Values.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* root, suffix of the settings' ConfigMap, webhooks: mount the webhooks too */}}
{{- define "fd.volumes" -}}
- name: settings
  configMap:
    name: {{ .settings }}
    defaultMode: 0440
- name: tmp
  emptyDir:
    sizeLimit: {{ .root.Values.tmpSizeLimit }}
{{- if eq (include "fd.store" .root) "yaml" }}
- name: webhooks
  {{- if .webhooks }}
  projected:
    defaultMode: 0440
    sources:
      - configMap:
          name: {{ include "fd.fullname" .root }}-webhooks
      {{- range .root.Values.webhooks.existingConfigMaps }}
      - configMap:
          name: {{ . }}
      {{- end }}
      {{- range .root.Values.webhooks.existingSecrets }}
      - secret:
          name: {{ . }}
      {{- end }}
  {{- else }}
  emptyDir:
    sizeLimit: 1Mi
  {{- end }}
{{- end }}
{{- if and .root.Values.persistence.enabled .webhooks }}
- name: data
  persistentVolumeClaim:
    claimName: {{ default (printf "%s-data" (include "fd.fullname" .root)) .root.Values.persistence.existingClaim }}
{{- end }}
{{- range .root.Values.secretMounts }}
- name: secret-{{ .name }}
  secret:
    secretName: {{ .secretName }}
    defaultMode: 0440
    {{- with .items }}
    items:
      {{- toYaml . | nindent 6 }}
    {{- end }}
{{- end }}
{{- with .root.Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "fd.volumeMounts" -}}
- name: settings
  mountPath: /etc/dispatcher
  readOnly: true
- name: tmp
  mountPath: /tmp
{{- if eq (include "fd.store" .) "yaml" }}
- name: webhooks
  mountPath: {{ include "fd.webhooksPath" . }}
  readOnly: true
{{- end }}
{{- range .Values.secretMounts }}
- name: secret-{{ .name }}
  mountPath: /run/secrets/{{ .name }}
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The container's common part: root, resources */}}
{{- define "fd.containerCommon" -}}
image: {{ include "fd.image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  {{- toYaml .root.Values.securityContext | nindent 2 }}
{{- with .resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  {{- include "fd.volumeMounts" .root | nindent 2 }}
  {{- if and .root.Values.persistence.enabled .data }}
  - name: data
    mountPath: {{ .root.Values.persistence.mountPath }}
  {{- end }}
{{- end -}}

{{- define "fd.topologySpread" -}}
{{- if .given }}
{{- toYaml .given }}
{{- else }}
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
- maxSkew: 1
  topologyKey: {{ . }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "fd.selectorLabels" $ | nindent 6 }}
  matchLabelKeys: [{{ $.revisionKey }}]
{{- end }}
{{- end }}
{{- end -}}

{{/* IP families of a Service */}}
{{- define "fd.ipFamilies" -}}
{{- with .Values.service.ipFamilyPolicy }}
ipFamilyPolicy: {{ . }}
{{- end }}
{{- with .Values.service.ipFamilies }}
ipFamilies: [{{ join ", " . }}]
{{- end }}
{{- end -}}

{{/* Whether the SQL store is migrated by an init container, because no hook can have the release's own volume */}}
{{- define "fd.migratesItself" -}}
{{- if and .Values.persistence.enabled .Values.migrations.enabled (eq (include "fd.store" .) "sql") }}true{{ end -}}
{{- end -}}

{{/* Ports of the bootstrap servers, 9092 by default; a server that isn't host:port is refused, as the dispatcher would. */}}
{{- define "fd.bootstrapPorts" -}}
{{- range splitList "," (toString (dig "kafka" "bootstrap_servers" "" .Values.config)) -}}
{{- $server := trim . -}}
{{- if not $server -}}
{{- else if regexMatch "^[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(%[0-9A-Za-z._-]+)?$" $server }} 9092 {{ else -}}
{{- $port := regexFind ":[0-9]+$" $server | trimPrefix ":" | default "9092" | int -}}
{{- if not (regexMatch "^([^\\s/;:@?#\\[\\]]+|\\[[0-9A-Fa-f:.]+(%[0-9A-Za-z._-]+)?\\])(:[0-9]{1,5})?$" $server) -}}
{{- fail (printf "config.kafka.bootstrap_servers: %q is not host:port; write brokers without a scheme, separated by commas, and an IPv6 address as [address]:port" $server) -}}
{{- else if or (lt $port 1) (gt $port 65535) -}}
{{- fail (printf "config.kafka.bootstrap_servers: %q: the port must be a number from 1 to 65535" $server) -}}
{{- end }} {{ $port }} {{ end -}}
{{- end -}}
{{- end -}}

{{/* Ports of the brokers, one a line: the given ones, or those of the bootstrap servers. */}}
{{- define "fd.kafkaPorts" -}}
{{- $given := list -}}
{{- range .Values.networkPolicy.kafka.ports }}{{ $given = append $given (int .) }}{{ end -}}
{{- $known := list -}}
{{- range splitList " " (include "fd.bootstrapPorts" .) -}}
{{- with trim . }}{{- $known = append $known (int .) -}}{{ end -}}
{{- end -}}
{{- range $known -}}
{{- if and $given (not (has . $given)) -}}
{{- fail (printf "networkPolicy.kafka.ports lacks %d, a port of config.kafka.bootstrap_servers: add it, or leave networkPolicy.kafka.ports out" .) -}}
{{- end -}}
{{- end -}}
{{- $ports := default $known $given -}}
{{- if not $ports -}}
{{- fail "networkPolicy.kafka.ports is empty and config.kafka.bootstrap_servers names no broker: set one of them" -}}
{{- end -}}
{{- range $ports | uniq }}{{ . }} {{ end -}}
{{- end -}}

{{/* Ports of endpoints, one a line: the given ones, those of the dispatcher's own guard, or the usual ones. */}}
{{- define "fd.webhookPorts" -}}
{{- $given := .Values.networkPolicy.webhooks.ports -}}
{{- $own := default (list) (dig "egress" "ports" (list) .Values.config) -}}
{{- $ports := default (default (list 443 8443) $own) $given -}}
{{- $numbers := list -}}
{{- range $ports }}{{ $numbers = append $numbers (int .) }}{{ end -}}
{{- range $own -}}
{{- if not (has (int .) $numbers) -}}
{{- fail (printf "networkPolicy.webhooks.ports lacks %d of config.egress.ports: add it, or leave networkPolicy.webhooks.ports out" (int .)) -}}
{{- end -}}
{{- end -}}
{{- range $numbers | uniq }}{{ . }} {{ end -}}
{{- end -}}

{{- define "fd.scales" -}}
{{- if or (ne .Values.autoscaling.type "none") (gt (int .Values.replicaCount) 1) }}true{{ end -}}
{{- end -}}

{{/* Delays of the retry tiers in milliseconds, separated by spaces */}}
{{- define "fd.tiers" -}}
{{- $retry := default (dict) .Values.config.retry -}}
{{- $tiers := list "30s" "2m" "5m" "15m" -}}
{{- if eq (default "default" $retry.profile) "standard-webhooks" -}}
{{- $tiers = list "5s" "5m" "30m" "2h" "5h" "10h" "14h" "20h" "24h" -}}
{{- end -}}
{{- if $retry.tiers }}{{ $tiers = $retry.tiers }}{{ end -}}
{{- range $tiers }}{{ include "fd.milliseconds" . }} {{ end -}}
{{- end -}}
