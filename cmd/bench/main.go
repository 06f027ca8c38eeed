// Command bench measures the guard against its peers, all in network namespaces
// on this machine: servers, the DNS above them, and a client that asks.
//
//	make bench                        everything; some 30 minutes
//	go run ./cmd/bench -quick         a first look at everything
//	go run ./cmd/bench -run hot,cold  some of it; routes is all that begins with routes-
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// An experiment yields rows of the table.
type experiment struct {
	name string
	what string
	run  func(*bench) error
}

var experiments = []experiment{
	{"ceiling", "what the load generator itself can do", ceiling},
	{"kernel", "the kernel's own time for one transaction, by its size", kernel},
	{"hot", "1,000 cached names", hot},
	{"cold", "names never seen before, each answer held", cold},
	{"latency", "one held answer at a time", latency},
	{"application", "who asks on the guarded machine, found out for each answer", application},
	{"early", "packets that follow an answer at once", early},
	{"grantcost", "the kernel's time for a grant, by how many answers wait", grantCost},
	{"grants", "hot and cold beside 1,000,000 live grants", grants},
	{"memory", "what 1,000,000 live grants cost the process", memory},
	{"restart", "reload and restart with 1,000,000 live grants", restart},
	{"tcp", "new TCP connections through 1,000,000 grants", connections},
	{"allocs", "allocations of a cached answer", allocations},
	{"curve", "throughput and latency by the load that is offered", curve},
	{"steady", "5,000 new names a second, and as many that run out", steady},
	{"routes-answers", "answers with mapped addresses, cached and new", routedAnswers},
	{"routes-traffic", "what goes through translation", routedTraffic},
	{"routes-mappings", "memory and restart with 500,000 mapped addresses", mappings},
}

// bench is one run of the program.
type bench struct {
	*peers
	quick   bool
	rounds  int
	profile string // folder for CPU profiles
	against string // another build of ours
	report  report
}

// pick returns the full measure, or the quick one.
func pick[T any](b *bench, full, quick T) T {
	if b.quick {
		return quick
	}
	return full
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	b := &bench{}
	var only, results, plots string
	flag.BoolVar(&b.quick, "quick", false, "a first look: fewer and shorter runs")
	flag.IntVar(&b.rounds, "rounds", 0, "runs of each of the programs compared (61; 9 with -quick)")
	flag.StringVar(&only, "run", "", "experiments, separated by commas; all when left out")
	flag.StringVar(&b.profile, "profile", "", "a folder for CPU profiles of the guard, and of CoreDNS without it, in hot and cold")
	flag.StringVar(&b.against, "against", "", "another build of ours, to see what a change is worth in hot, cold and latency")
	flag.StringVar(&guardMode, "mode", guardMode, "the guard's mode")
	flag.StringVar(&results, "out", "bench-results", "the folder for raw results")
	flag.StringVar(&plots, "plots", "docs", "the folder for plots; none when empty, nor with -quick")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "usage: bench [flags]\n")
		flag.PrintDefaults()
		fmt.Fprintf(flag.CommandLine.Output(), "experiments:\n")
		for _, e := range experiments {
			fmt.Fprintf(flag.CommandLine.Output(), "  %-15s %s\n", e.name, e.what)
		}
	}
	flag.Parse()
	if b.rounds == 0 {
		b.rounds = pick(b, 61, 9)
	}
	todo, err := choose(only)
	if err != nil {
		return err
	}
	if b.peers, err = findPeers(); err != nil {
		return err
	}
	if err := netlab.Isolate(); err != nil {
		return err
	}
	b.report.describe(b)
	var failed error
	for _, e := range todo {
		start := time.Now()
		fmt.Fprintf(os.Stderr, "%-15s %s\n", e.name, e.what)
		if err := e.run(b); err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", e.name, err))
			fmt.Fprintf(os.Stderr, "%-15s failed: %v\n", e.name, err)
		}
		fmt.Fprintf(os.Stderr, "%-15s took %v\n", e.name, time.Since(start).Round(time.Second))
	}
	b.report.finish()
	b.report.print(os.Stdout)
	if !b.quick { // which is too short to tell
		failed = errors.Join(failed, b.report.missed())
	}
	if plots != "" && !b.quick {
		failed = errors.Join(failed, b.report.plots(plots))
	}
	path := filepath.Join(results, b.report.Date.Format("20060102-150405")+".json")
	if err := b.report.save(path); err != nil {
		return errors.Join(failed, err)
	}
	fmt.Printf("\nraw results: %s\n", path)
	return failed
}

func choose(only string) ([]experiment, error) {
	if only == "" {
		return experiments, nil
	}
	var todo []experiment
	for name := range strings.SplitSeq(only, ",") {
		found := len(todo)
		for _, e := range experiments {
			if e.name == name || strings.HasPrefix(e.name, name+"-") {
				todo = append(todo, e)
			}
		}
		if len(todo) == found {
			return nil, fmt.Errorf("there is no experiment %q: see -help", name)
		}
	}
	return todo, nil
}
