package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestResponderAnswers(t *testing.T) {
	for _, tc := range []struct {
		name   string
		number uint32
		ttl    int
		qtype  uint16
		want   string
	}{
		{"IPv4", 0x010203, 60, dns.TypeA, "n00010203.60.bench.\t60\tIN\tA\t11.1.2.3"},
		{"IPv6", 0x01020304, 86400, dns.TypeAAAA, "n01020304.86400.bench.\t86400\tIN\tAAAA\t2a10::102:304"},
		{"another type", 1, 60, dns.TypeTXT, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := make([]byte, packetSize)
			b = b[:cap(b)]
			n := answer(b, question(b, tc.number, tc.ttl, tc.qtype))
			m := new(dns.Msg)
			if err := m.Unpack(b[:n]); err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, rr := range m.Answer {
				got += rr.String()
			}
			if got != tc.want || !m.Response || m.Rcode != dns.RcodeSuccess {
				t.Errorf("got %q, want %q in\n%v", got, tc.want, m)
			}
		})
	}
}

func TestResponderKnowsNoOtherNames(t *testing.T) {
	m := new(dns.Msg)
	m.SetQuestion("www.a-long-enough-name.example.org.", dns.TypeA)
	packed, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, packetSize)
	n := answer(b, copy(b, packed))
	if err := m.Unpack(b[:n]); err != nil || m.Rcode != dns.RcodeNameError {
		t.Errorf("%v: %v", err, m)
	}
	for size := range packed {
		b := make([]byte, packetSize)
		answer(b, copy(b, packed[:size])) // must not panic
	}
}

func TestAddressesAreWhatTheResponderSays(t *testing.T) {
	b := make([]byte, packetSize)
	n := answer(b, question(b, 0x01020304, 60, dns.TypeA))
	if got := net.IP(b[n-4 : n]).String(); got != "11.2.3.4" || address4(0x01020304) != 11<<24|0x020304 {
		t.Errorf("got %s", got)
	}
}

func TestHistogram(t *testing.T) {
	h := &histogram{}
	for i := 1; i <= 100_000; i++ {
		h.add(int64(i) * 10)
	}
	for _, q := range []float64{0.01, 0.5, 0.99, 1} {
		want := q * 1e6
		if got := float64(h.quantile(q) / time.Nanosecond); math.Abs(got-want) > want/64 {
			t.Errorf("quantile %v: got %v, want %v", q, got, want)
		}
	}
}

func TestMedian(t *testing.T) {
	if m := median([]float64{3, 1, 2}); m != 2 {
		t.Error(m)
	}
	if m := median([]float64{4, 1, 2, 3}); m != 2.5 {
		t.Error(m)
	}
	if m := mad([]float64{1, 2, 3, 10}); m != 1 {
		t.Error(m)
	}
}

// What falls short makes the program fail.
func TestMissed(t *testing.T) {
	var r report
	r.add(row{Name: "no limit"}, row{Name: "enough", Ratio: 0.96}.atLeast(0.95), row{Name: "as much", Ours: 2}.atMost(2, "s"))
	if err := r.missed(); err != nil {
		t.Error(err)
	}
	r.add(row{Name: "hot", What: "cached", Ratio: 0.94}.atLeast(0.95), row{Name: "cold", What: "new", Ours: 3}.atMost(2, "s"))
	if got, want := fmt.Sprint(r.missed()), "hot, cached: wanted >= 0.95\ncold, new: wanted <= 2 s"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestChart(t *testing.T) {
	c := chart{title: "a < b", x: "x", y: "y", logX: true}
	c.add("one", []point{{1000, 1}, {10, 0.9}, {1e6, 0.8}})
	c.add("two", []point{{1000, 0.5}})
	d := xml.NewDecoder(strings.NewReader(c.svg()))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if !strings.Contains(c.svg(), ">1M<") || strings.Contains(c.svg(), "NaN") {
		t.Error(c.svg())
	}
}

func TestChoose(t *testing.T) {
	for _, tc := range []struct{ name, only, want string }{
		{"one", "hot", "hot"},
		{"those that begin so", "cold,routes", "cold routes-answers routes-traffic routes-mappings"},
		{"one of these", "routes-traffic", "routes-traffic"},
		{"no such", "rou", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			todo, err := choose(tc.only)
			var got []string
			for _, e := range todo {
				got = append(got, e.name)
			}
			if strings.Join(got, " ") != tc.want || (err != nil) != (tc.want == "") {
				t.Errorf("got %v, %v, want %s", got, err, tc.want)
			}
		})
	}
}
