package main

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
)

const hostile = `<script>document.title='owned'</script><img src=http://192.0.2.1/x>.example`

func sampleReport() *report {
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	until := now.Add(time.Minute)
	return newReport(now.Add(-6*time.Hour), admin.Status{
		Version: "CoreDNS 1.15.0", Now: now, Mode: "nft-both", Scope: "client", Enforcing: true,
		Hooks: []admin.Hook{{Name: "output", State: admin.Enforced, Refused: admin.Count{Packets: 3, Bytes: 180}}, {Name: "forward", State: admin.Tried, Until: &until}},
	}, admin.Answers{Answers: []admin.Answer{
		{Name: "www.example.com", Address: netip.MustParseAddr("192.0.2.1"), For: "10.0.0.7", At: now.Add(-time.Hour)},
		{Name: "www.example.com", Address: netip.MustParseAddr("192.0.2.2"), For: "10.0.0.9", At: now.Add(-time.Minute)},
		{Name: hostile, Address: netip.MustParseAddr("10.0.0.1"), For: "10.0.0.9", At: now.Add(-5 * time.Hour), Stripped: "private-use (RFC 1918)"},
	}}, admin.DeniedList{Flows: []admin.Denied{
		{First: now.Add(-2 * time.Hour), Last: now.Add(-time.Second), Hook: "forward", Client: netip.MustParseAddr("10.0.0.9"), Interface: "lan0", Protocol: "tcp",
			Address: netip.MustParseAddr("10.0.0.1"), Port: 443, Packets: 40, Bytes: 2400, Reason: "stripped", Text: "stripped: private-use (RFC 1918), in the answer for " + hostile, Name: hostile},
		{First: now.Add(-2 * time.Hour), Last: now.Add(-7 * time.Hour), Hook: "output", Audit: true, User: "root", Protocol: "udp", Address: netip.MustParseAddr("192.0.2.9"), Port: 123, Packets: 2, Bytes: 152, Reason: "never_resolved", Text: "never resolved here"},
	}})
}

func TestReport(t *testing.T) {
	r := sampleReport()
	if len(r.Names) != 2 || r.Names[0].Name != "www.example.com" || strings.Join(r.Names[0].Addresses, " ") != "192.0.2.1 192.0.2.2" || strings.Join(r.Names[0].For, " ") != "10.0.0.7 10.0.0.9" ||
		len(r.Names[1].Addresses) > 0 || r.Names[1].Stripped != "private-use (RFC 1918)" {
		t.Errorf("looked up: %+v", r.Names)
	}
	if len(r.Reasons) != 2 || r.Reasons[0] != (share{"stripped", 40, 100}) || r.Reasons[1] != (share{"never_resolved", 2, 5}) {
		t.Errorf("reasons: %+v", r.Reasons)
	}
	if n, m := len(r.Opened.Drawn()), len(r.Refused.Drawn()); n != 2 || m != 1 { // one answer opened nothing, one flow is too old for the chart
		t.Errorf("%d and %d bars", n, m)
	}
	file := filepath.Join(t.TempDir(), "report.html")
	if err := r.save(file); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info, err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if page := string(b); strings.Contains(page, "<script") || strings.Contains(page, "<img") || regexp.MustCompile(`(src|href)=`).MatchString(strings.ReplaceAll(page, "img src", "")) {
		t.Errorf("the page has what it should not:\n%s", page)
	}
	if err := r.save(filepath.Join(t.TempDir(), "none", "report.html")); err == nil {
		t.Error("saved in no folder")
	}
}

// A browser shows all of it, runs nothing, and fetches nothing.
func TestReportInABrowser(t *testing.T) {
	browser := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			browser = path
		}
	}
	if browser == "" {
		err := errors.New("there is no Chromium")
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "report.html")
	if err := sampleReport().save(file); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	shot := filepath.Join(dir, "report.png")
	cmd := exec.CommandContext(ctx, browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
		"--user-data-dir="+filepath.Join(dir, "profile"), "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr",
		"--window-size=1200,1600", "--screenshot="+shot, "--dump-dom", "file://"+file)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, &errs)
	}
	page := string(out)
	rows := func(table string) int {
		_, from, _ := strings.Cut(page, `<table id="`+table+`">`)
		part, _, _ := strings.Cut(from, "</table>")
		return strings.Count(part, "<tr>")
	}
	for table, want := range map[string]int{"hooks": 3, "names": 3, "reasons": 2, "denied": 3} {
		if got := rows(table); got != want {
			t.Errorf("table %s has %d rows, want %d", table, got, want)
		}
	}
	if !strings.Contains(page, "<title>What this machine's DNS let it reach</title>") || strings.Count(page, "<rect ") != 3 || strings.Contains(page, "<script>") {
		t.Errorf("the page is:\n%s", page)
	}
	if strings.Contains(errs.String(), "Refused to") || strings.Contains(errs.String(), "192.0.2.1") {
		t.Errorf("it complains: %s", &errs)
	}
	if info, err := os.Stat(shot); err != nil || info.Size() < 10_000 {
		t.Errorf("no picture of it: %v, %v", info, err)
	}
	if keep := os.Getenv("REPORT_PICTURE"); keep != "" {
		if b, err := os.ReadFile(shot); err == nil {
			_ = os.WriteFile(keep, b, 0o644)
		}
	}
}
