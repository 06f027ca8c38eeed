package ipdestinationguard

import (
	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/destination-guard/coredns-ip-destination-guard/route"
)

// The variables of the process. None has a label with a client or a name.
var (
	answers = counters("answers_total",
		"Answers that give addresses, by what became of them: passed at once, held until the kernel had acknowledged, or failed; and questions that were refused for their name.", "result")
	answersPassed  = answers.WithLabelValues("passed")
	answersHeld    = answers.WithLabelValues("held")
	answersFailed  = answers.WithLabelValues("failed")
	answersRefused = answers.WithLabelValues("refused")

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

	answersRewritten = promauto.NewCounter(prometheus.CounterOpts(opts("rewritten_total",
		"Answers for names with a route, given with mapped addresses.")))
	mappingsRefused = counters("mappings_refused_total",
		"Answers for names with a route that failed: no address is free, the disk or the kernel is late, or has failed.", "reason")
	mappingsRefusedFull   = mappingsRefused.WithLabelValues("full")
	mappingsRefusedLate   = mappingsRefused.WithLabelValues("late")
	mappingsRefusedFailed = mappingsRefused.WithLabelValues("failed")
	mappingsFreed         = promauto.NewCounter(prometheus.CounterOpts(opts("mappings_freed_total",
		"Mapped addresses that their names had not used for long, and that others may have.")))
	connectionsCut = promauto.NewCounter(prometheus.CounterOpts(opts("connections_cut_total",
		"Connections ended because their address has left the name (on_change cut).")))

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

// What the books hold is counted when somebody asks for it.
func init() {
	for family, of := range map[string]func(ipv4, ipv6 route.Count) route.Count{
		"ipv4": func(c, _ route.Count) route.Count { return c },
		"ipv6": func(_, c route.Count) route.Count { return c },
	} {
		sum := func(which func(route.Count) int) func() float64 {
			return func() (n float64) {
				g := running()
				if g == nil {
					return 0
				}
				for _, b := range g.books.list() {
					n += float64(which(of(b.Len())))
				}
				return n
			}
		}
		labelled := func(metric, help string) prometheus.GaugeOpts {
			o := prometheus.GaugeOpts(opts(metric, help))
			o.ConstLabels = prometheus.Labels{"family": family}
			return o
		}
		promauto.NewGaugeFunc(labelled("mappings", "Mapped addresses that names have."),
			sum(func(c route.Count) int { return c.Mapped }))
		promauto.NewGaugeFunc(labelled("mappings_free", "Mapped addresses that new names may have, of the pools in use."),
			sum(func(c route.Count) int { return c.Free }))
	}
}

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
