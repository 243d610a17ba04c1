//go:build tools

// Package cluster pins the parts of a Kubernetes control plane, apart from the service's own modules.
package cluster

import _ "k8s.io/kubernetes/cmd/kube-apiserver"
