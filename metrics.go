package ipdestinationguard

import (
	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// The variables of the process. None has a label with a client or a name.
var (
	answers = counters("answers_total",
		"Answers that give addresses, by what became of them: passed at once, held until the kernel had acknowledged, or failed; and questions that were refused for their name.", "result")
	answersPassed  = answers.WithLabelValues("passed")
	answersHeld    = answers.WithLabelValues("held")
	answersFailed  = answers.WithLabelValues("failed")
	answersRefused = answers.WithLabelValues("refused")

	answersValidated = counters("validated_total",
		"Answers that were validated (dnssec validate), by the verdict: secure, insecure, bogus or unknown.", "verdict")

	addressesStripped = counters("stripped_total",
		"Addresses taken out of answers because they are not globally reachable, or loopback, metadata or this machine's own.", "reason")

	holdSeconds = histogram("hold_duration_seconds",
		"How long answers were held.", prometheus.ExponentialBuckets(16e-6, 4, 10))

	grants = gauges("grants",
		"Grants that stand in the kernel.", "family")
	grantsIPv4 = grants.WithLabelValues("ipv4")
	grantsIPv6 = grants.WithLabelValues("ipv6")

	grantChanges = counters("grant_changes_total",
		"Grants that were made, renewed, removed because they had expired, and ended early because there were too many.", "change")
	grantsMade    = grantChanges.WithLabelValues("made")
	grantsRenewed = grantChanges.WithLabelValues("renewed")
	grantsExpired = grantChanges.WithLabelValues("expired")
	grantsEvicted = grantChanges.WithLabelValues("evicted")

	transactionSize = histogram("transaction_grants",
		"Grants changed in one transaction; their count is that of transactions.", prometheus.ExponentialBuckets(1, 4, 7))
	transactionSeconds = histogram("transaction_duration_seconds",
		"How long the kernel took for one transaction.", prometheus.ExponentialBuckets(4e-6, 4, 10))

	kernelErrors = counters("kernel_errors_total",
		"Operations that the kernel refused.", "operation")
	repairs = counters("repairs_total",
		"How often somebody else had removed or changed what is ours, and it was put back.", "part")
	withstood = promauto.NewCounter(prometheus.CounterOpts(opts("flushes_withstood_total",
		"How often somebody else has flushed the ruleset, and what is ours has stood it.")))
	enforcing = promauto.NewGauge(prometheus.GaugeOpts(opts("enforcing",
		"1 while the rules and all grants are in force, else 0.")))
)

func opts(metric, help string) prometheus.Opts {
	return prometheus.Opts{Namespace: plugin.Namespace, Subsystem: name, Name: metric, Help: help}
}

func counters(metric, help, label string) *prometheus.CounterVec {
	return promauto.NewCounterVec(prometheus.CounterOpts(opts(metric, help)), []string{label})
}

func gauges(metric, help, label string) *prometheus.GaugeVec {
	return promauto.NewGaugeVec(prometheus.GaugeOpts(opts(metric, help)), []string{label})
}

func histogram(metric, help string, buckets []float64) prometheus.Histogram {
	return promauto.NewHistogram(prometheus.HistogramOpts{
		Namespace: plugin.Namespace, Subsystem: name, Name: metric, Help: help, Buckets: buckets,
	})
}
