# Go and make are enough; nothing here needs root, save an install into the system's own folders.

GO       ?= go
BINARY   ?= coredns
GUARDCTL ?= guardctl
SENTINEL  = ipdestinationguard-sentinel
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null)
PREFIX   ?= /usr/local
FUZZTIME ?= 30s
TESTFLAGS ?=
STATICCHECK ?= honnef.co/go/tools/cmd/staticcheck@v0.8.2

# guardctl's, and the plugin's.
LDFLAGS = -s -w $(if $(VERSION),-X main.version=$(VERSION) -X github.com/destination-guard/coredns-ip-destination-guard.release=$(VERSION))
# The race detector is written in C.
CC_FOUND = $(shell command -v $(firstword $(shell $(GO) env CC)) 2>/dev/null)

bindir  = $(DESTDIR)$(PREFIX)/bin
mandir  = $(DESTDIR)$(PREFIX)/share/man/man8
usersdir = $(DESTDIR)$(PREFIX)/lib/sysusers.d
bashdir = $(DESTDIR)$(PREFIX)/share/bash-completion/completions
zshdir  = $(DESTDIR)$(PREFIX)/share/zsh/site-functions
fishdir = $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
unitdir = $(DESTDIR)$(PREFIX)/lib/systemd/system
share   = $(DESTDIR)$(PREFIX)/share/ipdestinationguard
confdir = $(DESTDIR)/etc/coredns

.PHONY: build
build: commands ## ./coredns, static, with the plugins in their places, ./guardctl and ./ipdestinationguard-sentinel (default)
	CGO_ENABLED=0 $(GO) build -trimpath -tags grpcnotrace -ldflags '$(LDFLAGS)' -o '$(BINARY)' ./cmd/coredns

.PHONY: commands
commands:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o '$(GUARDCTL)' ./cmd/guardctl
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o '$(dir $(BINARY))$(SENTINEL)' ./cmd/sentinel

# It needs a C compiler and Debian's libunbound-dev, and libunbound8 where it runs.
.PHONY: build-unbound
build-unbound: commands ## the same, coredns not static, with validation of DNSSEC by libunbound
	CGO_ENABLED=1 $(GO) build -trimpath -tags 'grpcnotrace unbound' -ldflags '$(LDFLAGS)' -o '$(BINARY)' ./cmd/coredns

.PHONY: test-unbound
test-unbound: ## the tests that take libunbound
	CGO_ENABLED=1 $(GO) vet -tags unbound . ./validate
	CGO_ENABLED=1 $(GO) test -race -tags unbound -timeout 5m $(TESTFLAGS) ./validate
	CGO_ENABLED=1 $(GO) test -race -tags unbound -timeout 5m $(TESTFLAGS) -run 'TestSignedTree|Valid' .

.PHONY: test
test: ## every test but those that take libunbound, with the race detector where there is a C compiler
ifeq ($(CC_FOUND),)
	@echo 'make test: no C compiler found, so without the race detector'
	CGO_ENABLED=0 $(GO) test -count=1 -timeout 20m $(TESTFLAGS) ./...
else
	CGO_ENABLED=1 $(GO) test -race -count=1 -timeout 20m $(TESTFLAGS) ./...
endif

.PHONY: demo
demo: build ## a guarded host and a guarded network, in plain words
	@$(GO) run ./cmd/demo -coredns '$(abspath $(BINARY))'

.PHONY: bench
bench: ## how fast it is, on this machine
	$(GO) run ./cmd/bench

PROFILE = $(or $(TMPDIR),/tmp)/ipdestinationguard-profile

.PHONY: profile
profile: ## renew cmd/coredns/default.pgo, from which every build is optimised
	$(GO) run ./cmd/bench -quick -run hot,cold -plots '' -profile '$(PROFILE)'
	$(GO) tool pprof -proto '$(PROFILE)/hot-guard-on-cpu.pprof' '$(PROFILE)/cold-guard-on-cpu.pprof' > cmd/coredns/default.pgo

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (30s)
	@dirs=$$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -r -n 1 dirname | sort -u); \
	[ -n "$$dirs" ] || { echo 'make fuzz: no fuzz targets'; exit 1; }; \
	for dir in $$dirs; do \
		list=$$($(GO) test -list '^Fuzz' "$$dir") || { echo "$$list"; exit 1; }; \
		for target in $$(echo "$$list" | grep '^Fuzz'); do \
			echo "fuzzing $$target in $$dir for $(FUZZTIME)"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime '$(FUZZTIME)' "$$dir" || exit 1; \
		done; \
	done

.PHONY: lint
lint: ## gofmt, go vet, staticcheck
	@bad=$$(gofmt -l .) && [ -z "$$bad" ] || { echo "not formatted by gofmt: $$bad"; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

# Units name the binary's place. Nothing that an administrator may have edited is overwritten.
.PHONY: install
install: ## install what was built; PREFIX (/usr/local), DESTDIR
	@for program in '$(BINARY)' '$(GUARDCTL)'; do \
		[ -x "$$program" ] || { echo "make install: no $$program yet: run make build or build-unbound first (not as root)"; exit 1; }; \
	done
	install -d '$(bindir)' '$(unitdir)' '$(share)' '$(confdir)' '$(mandir)' '$(usersdir)' '$(bashdir)' '$(zshdir)' '$(fishdir)'
	install -m 0755 '$(BINARY)' '$(bindir)/coredns'
	install -m 0755 '$(GUARDCTL)' '$(bindir)/guardctl'
	'$(abspath $(GUARDCTL))' man '$(mandir)'
	'$(abspath $(GUARDCTL))' completion bash > '$(bashdir)/guardctl'
	'$(abspath $(GUARDCTL))' completion zsh > '$(zshdir)/_guardctl'
	'$(abspath $(GUARDCTL))' completion fish > '$(fishdir)/guardctl.fish'
	install -m 0644 deployment/ipdestinationguard.sysusers '$(usersdir)/ipdestinationguard.conf'
	install -m 0755 '$(dir $(BINARY))$(SENTINEL)' '$(bindir)/$(SENTINEL)'
	for unit in ipdestinationguard-coredns ipdestinationguard-boot $(SENTINEL); do \
		sed 's|/usr/local/bin/|$(PREFIX)/bin/|' deployment/$$unit.service > '$(unitdir)'/$$unit.service && \
		chmod 0644 '$(unitdir)'/$$unit.service || exit 1; \
	done
	install -m 0644 Corefile.example $(addprefix deployment/,README.md egress-gateway.md upstream.md Corefile.dot Corefile.doh Corefile.doq \
		ipdestinationguard-certificates.path ipdestinationguard-certificates.service alerts.yml grafana-dashboard.json boot-server.nft boot-gateway.nft) '$(share)'
	[ -e '$(confdir)/Corefile' ] || install -m 0644 Corefile.example '$(confdir)/Corefile'
	[ -e '$(confdir)/boot.nft' ] || install -m 0644 deployment/boot-server.nft '$(confdir)/boot.nft'

.PHONY: clean
clean: ## remove what was built; the fuzz corpus in testdata stays
	rm -f coredns guardctl $(SENTINEL) *.test *.prof

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
