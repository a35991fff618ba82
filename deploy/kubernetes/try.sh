#!/usr/bin/env bash
# Installs, upgrades, rolls back, tests and removes the chart for real: an etcd, a Kubernetes API server and a controller
# manager on this machine, on loopback, in a temporary folder that is removed. Every namespace enforces the restricted
# pod security standard. There are no nodes: a few lines below report for each pod what a kubelet would, so that jobs end and
# roll-outs go on. Not run in CI.
#
#   deploy/kubernetes/try.sh                    needs go, etcd (Debian: etcd-server), kubectl, openssl; minutes, the first time more
#   CRDS=folder deploy/kubernetes/try.sh        with the definitions of the Prometheus operator's and KEDA's resources in it
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
[ "${BOUNDED:-}" ] || exec env BOUNDED=1 timeout --kill-after=30 3600 "$0" "$@"
version=${KUBERNETES:-1.37.1}
programs="$root/.tools/kubernetes-$version"
chart="$root/deploy/helm/feedback-dispatcher"
helm="$root/.tools/${HELM:-helm4}"
[ -x "$helm" ] || "$root/deploy/tools.sh"
KUBERNETES=$version "$root/deploy/kubernetes/control-plane.sh"

work=$(mktemp -d)
pids=()
clean() {
    kill "${pids[@]}" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap clean EXIT
export KUBECONFIG="$work/kubeconfig"
say() { printf '%5ss  %s\n' "$SECONDS" "$*"; }
fail() { say "FAILED: $*"; exit 1; }

# The control plane

ports=$(python3 -c '
import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(one.getsockname()[1] for one in held))')
read -r store peers api <<< "$ports"
openssl genrsa -out "$work/accounts.key" 2048 2>/dev/null
token=$(openssl rand -hex 16)
echo "$token,admin,admin,system:masters" > "$work/tokens.csv"
cat > "$KUBECONFIG" <<CONF
apiVersion: v1
kind: Config
clusters: [{name: here, cluster: {server: "https://127.0.0.1:$api", certificate-authority: $work/certificates/apiserver.crt}}]
users: [{name: admin, user: {token: $token}}]
contexts: [{name: here, context: {cluster: here, user: admin}}]
current-context: here
CONF
etcd --data-dir "$work/etcd" --listen-client-urls "http://127.0.0.1:$store" --advertise-client-urls "http://127.0.0.1:$store" \
    --listen-peer-urls "http://127.0.0.1:$peers" --initial-advertise-peer-urls "http://127.0.0.1:$peers" \
    --initial-cluster "default=http://127.0.0.1:$peers" > "$work/etcd.log" 2>&1 & pids+=($!)
"$programs/kube-apiserver" --etcd-servers="http://127.0.0.1:$store" --bind-address=127.0.0.1 --advertise-address=127.0.0.1 \
    --endpoint-reconciler-type=none --secure-port="$api" --cert-dir="$work/certificates" --service-cluster-ip-range=10.0.0.0/24 \
    --service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$work/accounts.key" \
    --service-account-signing-key-file="$work/accounts.key" --token-auth-file="$work/tokens.csv" \
    --authorization-mode=RBAC > "$work/apiserver.log" 2>&1 & pids+=($!)
for _ in $(seq 120); do kubectl get --raw /readyz >/dev/null 2>&1 && break; sleep 0.5; done
kubectl get --raw /readyz >/dev/null || { tail -5 "$work/apiserver.log"; fail "the API server does not come up"; }
"$programs/kube-controller-manager" --kubeconfig="$KUBECONFIG" --bind-address=127.0.0.1 --secure-port=0 --leader-elect=false \
    --service-account-private-key-file="$work/accounts.key" --use-service-account-credentials=false > "$work/controllers.log" 2>&1 & pids+=($!)

# In the place of kubelets: a pod that is meant to end has ended well, any other runs and is ready.
kubelets() {
    local now
    while sleep 0.3; do
        kubectl get pods --all-namespaces --field-selector=status.phase=Pending \
            --output=jsonpath='{range .items[*]}{.metadata.namespace} {.metadata.name} {.spec.restartPolicy}{"\n"}{end}' 2>/dev/null |
            while read -r namespace pod restarts; do
                now=$(date -u +%FT%TZ)
                status='{"phase": "Succeeded"}'
                [ "$restarts" = Never ] || status='{"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "'"$now"'"}]}'
                kubectl --namespace "$namespace" patch pod "$pod" --subresource=status --type=merge --patch "{\"status\": $status}" >/dev/null 2>&1 || true
            done
    done
}
kubelets & pids+=($!)
say "$(kubectl version 2>/dev/null | sed -n 's/Server Version: /Kubernetes /p') is up, $("$helm" version --short | sed 's/^/helm /')"

# What the operators define: theirs if it is available, else a stand-in that takes everything

stand_in() { # group kind plural version
    kubectl get crd "$3.$1" >/dev/null 2>&1 && return
    kubectl apply --filename - >/dev/null <<CRD
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: $3.$1, annotations: {api-approved.kubernetes.io: "unapproved, a stand-in"}}
spec:
  group: $1
  scope: Namespaced
  names: {kind: $2, plural: $3, singular: ${2,,}}
  versions: [{name: $4, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]
CRD
    say "no definition of $2 at hand: anything goes"
}
[ -z "${CRDS:-}" ] || kubectl apply --server-side --filename "$CRDS" >/dev/null
stand_in monitoring.coreos.com PodMonitor podmonitors v1
stand_in monitoring.coreos.com ServiceMonitor servicemonitors v1
stand_in monitoring.coreos.com PrometheusRule prometheusrules v1
stand_in keda.sh ScaledObject scaledobjects v1alpha1
stand_in gateway.networking.k8s.io HTTPRoute httproutes v1
stand_in kafka.strimzi.io KafkaTopic kafkatopics v1
kubectl wait --for=condition=Established crd --all --timeout=60s >/dev/null

restricted() { # namespace
    kubectl create namespace "$1" >/dev/null
    kubectl label namespace "$1" pod-security.kubernetes.io/enforce=restricted pod-security.kubernetes.io/warn=restricted >/dev/null
}
for other in messaging kafka monitoring; do restricted "$other"; done # where some of the values put objects
kubectl --namespace messaging create serviceaccount existing-account >/dev/null
kubectl create priorityclass high --value=1000 >/dev/null

# Every one of the ci values: installed with its hooks, ready, tested, removed

for values in "$chart"/ci/*-values.yaml; do
    name=$(basename "$values" -values.yaml)
    restricted "ci-$name"
    "$helm" install feedback "$chart" --namespace "ci-$name" --values "$values" --set minReadySeconds=0 \
        --wait --timeout 2m > "$work/install" 2>&1 || { cat "$work/install"; fail "install $name"; }
    ! grep -i 'warning' "$work/install" || fail "the API server warns of $name"
    "$helm" test feedback --namespace "ci-$name" --timeout 1m > "$work/test" 2>&1 || { cat "$work/test"; fail "test $name"; }
    "$helm" uninstall feedback --namespace "ci-$name" --wait --timeout 1m >/dev/null 2>&1 || fail "uninstall $name"
    say "$name: installed, ready, tested, removed"
done

# One release's life

space=life
restricted $space
# Room for two pods: a roll-out with a surge would never end.
kubectl --namespace $space create quota two --hard=pods=2 >/dev/null
release() { # verb, options
    local verb=$1
    shift
    "$helm" "$verb" feedback "$@" --namespace $space --wait --timeout 3m > "$work/release" 2>&1 || { cat "$work/release"; fail "$verb"; }
}
template() { kubectl --namespace $space get deployment --output=jsonpath='{.items[0].metadata.annotations.deployment\.kubernetes\.io/revision}'; }
level() { kubectl --namespace $space get configmap feedback-feedback-dispatcher-settings --output=jsonpath='{.data.dispatcher\.yaml}' | sed -n 's/ *level: //p'; }
values=(--values "$chart/ci/webhooks-values.yaml")

release install "$chart" "${values[@]}"
[ "$(template)" = 1 ] || fail "revision $(template) after the installation"
[ "$(kubectl --namespace $space get pdb --output=jsonpath='{.items[0].status.disruptionsAllowed}')" = 1 ] || fail "the budget allows no disruption"
found=$(kubectl --namespace $space get deployment,statefulset --selector app.kubernetes.io/instance=feedback,app.kubernetes.io/component=dispatcher --output=name)
[ "$found" = deployment.apps/feedback-feedback-dispatcher ] || fail "the runbooks' selector finds: $found"
say "installed: two pods ready, one may be away"
release upgrade "$chart" "${values[@]}" --set-json 'webhooks.files={"other.yaml":"apiVersion: dispatcher/v1\nwebhooks: []"}'
[ "$(template)" = 1 ] || fail "webhooks changed, and the pods were replaced"
say "upgraded with other webhooks: no pod was replaced"
release upgrade "$chart" "${values[@]}" --set config.log.level=debug
[ "$(template) $(level)" = "2 debug" ] || fail "settings changed: revision $(template), level $(level)"
say "upgraded with other settings: pods were replaced, never more than two"
release rollback 1
[ "$(template) $(level)" = "3 " ] || fail "rolled back: revision $(template), level $(level)"
say "rolled back: the settings of the beginning, in new pods"
if "$helm" upgrade feedback "$chart" --namespace $space "${values[@]}" --set config.delivery.max_inflight=3 >/dev/null 2>&1; then fail "a misspelt setting went through"; fi
say "a misspelt setting is refused before anything is touched"
"$helm" upgrade feedback "$chart" --namespace $space "${values[@]}" --set podSecurityContext.runAsNonRoot=false >/dev/null 2>&1
turned_away() { kubectl --namespace $space get events --field-selector reason=FailedCreate --output=jsonpath='{.items[*].message}' | grep 'violates PodSecurity "restricted'; }
for _ in $(seq 60); do turned_away >/dev/null && break; sleep 0.5; done
turned_away >/dev/null || fail "a pod that may run as root was admitted"
[ "$(kubectl --namespace $space get pods --output=name | wc -l)" = 1 ] || fail "the last good pod is gone"
say "the namespace is on guard: a pod that may run as root is turned away, the last good one goes on"
release rollback 1
"$helm" uninstall feedback --namespace $space --wait >/dev/null
left=$(kubectl --namespace $space get all,configmaps,serviceaccounts,pdb,secrets --selector app.kubernetes.io/instance=feedback --output=name)
[ -z "$left" ] || fail "left behind: $left"
say "removed, and nothing is left"
say "all of it holds"
