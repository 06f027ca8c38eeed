package ipdestinationguard

import (
	"slices"

	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/route"
)

// The variables of the process. None has a label with a client or a name.
var (
	answers = counters("answers_total",
		"Answers that give addresses, by what became of them: passed at once, held until the kernel had acknowledged, or failed; and questions that were refused for their name.", by("result", "passed", "held", "failed", "refused"))
	answersPassed  = answers.WithLabelValues("passed")
	answersHeld    = answers.WithLabelValues("held")
	answersFailed  = answers.WithLabelValues("failed")
	answersRefused = answers.WithLabelValues("refused")

	answersValidated = counters("validated_total",
		"Answers that were validated (dnssec validate), by the verdict: secure, insecure, bogus or unknown.", by("verdict", "secure", "insecure", "bogus", "unknown"))

	addressesStripped = counters("stripped_total",
		"Addresses taken out of answers because they are not globally reachable, or loopback, metadata or this machine's own.",
		by("reason", "not_global", "loopback", "metadata", "own", "ip_version", "too_many", "mapped"))

	holdSeconds = histogram("hold_duration_seconds",
		"How long answers were held.", prometheus.ExponentialBuckets(16e-6, 4, 10))

	grants = gauges("grants",
		"Grants that stand in the kernel.", "family")
	grantsIPv4 = grants.WithLabelValues("ipv4")
	grantsIPv6 = grants.WithLabelValues("ipv6")

	grantChanges = counters("grant_changes_total",
		"Grants that were made, renewed, removed because they had expired, ended early because there were too many, and revoked by people.", by("change", "made", "renewed", "expired", "evicted", "revoked"))
	grantsMade    = grantChanges.WithLabelValues("made")
	grantsRenewed = grantChanges.WithLabelValues("renewed")
	grantsExpired = grantChanges.WithLabelValues("expired")
	grantsEvicted = grantChanges.WithLabelValues("evicted")
	grantsRevoked = grantChanges.WithLabelValues("revoked")

	answersRewritten = promauto.NewCounter(prometheus.CounterOpts(opts("rewritten_total",
		"Answers for names with a route, given with mapped addresses.")))
	mappingsRefused = counters("mappings_refused_total",
		"Answers for names with a route that failed: no address is free, the disk or the kernel is late, or has failed.", by("reason", "full", "late", "failed"))
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

	deniedTotal = counters("denied_packets_total",
		"Packets of flows that were refused, or passed in audit only, by why. Those of flows that there were too many of to tell are missing: see denied_all_packets_total.",
		by("chain", backend.Output.String(), backend.Forward.String()), by("became", verb(false), verb(true)), by("reason", reasons...))

	kernelErrors = counters("kernel_errors_total",
		"Operations that the kernel refused.", by("operation", "open", "commit", "read", "cut"))
	repairs = counters("repairs_total",
		"How often somebody else had removed or changed what is ours, and it was put back.", by("part", "rules", "grants", "mappings"))
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

// counters has a counter for each combination of what its labels say, from the start: one
// that began with what it counts would begin at 1, and no alert would see it rise.
func counters(metric, help string, labels ...label) *prometheus.CounterVec {
	names, combined := []string{}, [][]string{{}}
	for _, l := range labels {
		names = append(names, l.name)
		var longer [][]string
		for _, c := range combined {
			for _, v := range l.values {
				longer = append(longer, append(slices.Clip(c), v))
			}
		}
		combined = longer
	}
	vec := promauto.NewCounterVec(prometheus.CounterOpts(opts(metric, help)), names)
	for _, c := range combined {
		vec.WithLabelValues(c...)
	}
	return vec
}

// A label of counters, and all that it can say.
type label struct {
	name   string
	values []string
}

func by[word ~string](name string, values ...word) label {
	l := label{name: name}
	for _, v := range values {
		l.values = append(l.values, string(v))
	}
	return l
}

func gauges(metric, help, label string) *prometheus.GaugeVec {
	return promauto.NewGaugeVec(prometheus.GaugeOpts(opts(metric, help)), []string{label})
}

func histogram(metric, help string, buckets []float64) prometheus.Histogram {
	return promauto.NewHistogram(prometheus.HistogramOpts{
		Namespace: plugin.Namespace, Subsystem: name, Name: metric, Help: help, Buckets: buckets,
	})
}

// tallies are read when somebody asks for them.
type tallies struct{ packets, unlisted, unkept, untold, audit *prometheus.Desc }

func init() {
	desc := func(metric, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName(plugin.Namespace, name, metric), help, labels, nil)
	}
	prometheus.MustRegister(&tallies{
		desc("denied_all_packets_total", "Packets that were refused, or passed in audit only: all of them, as the kernel counts.", "chain", "became"),
		desc("denied_unlisted_packets_total", "Of these, packets of flows that the kernel had no room for.", "chain"),
		desc("denied_flows_unkept_total", "Flows, as often as they were read, that the list of denied flows had no room for."),
		desc("denied_flows_untold_total", "Flows that were listed, and of which there were too many at once to tell why, in the log or as metrics."),
		desc("audit", "1 while a guarded chain refuses nothing and only counts, else 0.", "chain"),
	})
}

// Describe implements prometheus.Collector.
func (t *tallies) Describe(all chan<- *prometheus.Desc) {
	all <- t.packets
	all <- t.unlisted
	all <- t.unkept
	all <- t.untold
	all <- t.audit
}

// Collect implements prometheus.Collector.
func (t *tallies) Collect(all chan<- prometheus.Metric) {
	g := running()
	if g == nil {
		return
	}
	g.arming.Lock()
	d, rules := g.denied, g.rules
	g.arming.Unlock()
	if d == nil {
		return
	}
	for hook, guarded := range [backend.Hooks]bool{rules.Local, rules.Gateway} {
		audited := 0.0
		if [backend.Hooks]bool{rules.AuditLocal, rules.AuditGateway}[hook] && !g.trialEnds().After(g.now()) {
			audited = 1
		}
		if guarded {
			all <- prometheus.MustNewConstMetric(t.audit, prometheus.GaugeValue, audited, backend.Hook(hook).String())
		}
	}
	sums := d.log.Sums()
	send := func(desc *prometheus.Desc, n uint64, labels ...string) {
		all <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), labels...)
	}
	send(t.unkept, sums.Unkept)
	send(t.untold, sums.Untold)
	for hook, tally := range sums.Tallies {
		chain := backend.Hook(hook).String()
		send(t.packets, tally.Refused.Packets, chain, verb(false))
		send(t.packets, tally.Audited.Packets, chain, verb(true))
		send(t.unlisted, tally.Unlisted.Packets, chain)
	}
}
