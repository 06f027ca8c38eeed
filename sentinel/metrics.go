package sentinel

import (
	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// The variables of the process. None has a label with a client, a name or an address.
var (
	questions = promauto.NewCounterVec(prometheus.CounterOpts{
		Namespace: plugin.Namespace, Subsystem: name, Name: "questions_total",
		Help: "Questions to sentinels, by what became of them: forwarded, or sent to TCP first (truncated); or left without an answer, since their nameserver is dead, there is none for that sentinel, or somebody has asked who may not.",
	}, []string{"result"})
	questionsForwarded = questions.WithLabelValues("forwarded")
	questionsTruncated = questions.WithLabelValues("truncated")
	questionsDead      = questions.WithLabelValues("dead")
	questionsUnused    = questions.WithLabelValues("unused")
	questionsStrange   = questions.WithLabelValues("stranger")
)
