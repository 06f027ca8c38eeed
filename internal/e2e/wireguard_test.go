package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"
)

// wireguardEnv makes the test's binary a WireGuard for the interface that it names, as
// wireguard-go is: for kernels that have none.
const wireguardEnv = "E2E_WIREGUARD"

// beWireGuard does not return before the interface has gone.
func beWireGuard(ifname string) error {
	t, err := tun.CreateTUN(ifname, device.DefaultMTU)
	if err != nil {
		return fmt.Errorf("tun device %s: %w", ifname, err)
	}
	d := device.NewDevice(t, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, ifname+": "))
	defer d.Close()
	socket, err := ipc.UAPIOpen(ifname)
	if err != nil {
		return fmt.Errorf("socket for wg: %w", err)
	}
	listener, err := ipc.UAPIListen(ifname, socket)
	if err != nil {
		return fmt.Errorf("socket for wg: %w", err)
	}
	go func() {
		for {
			wg, err := listener.Accept()
			if err != nil {
				return // closed with the program
			}
			go d.IpcHandle(wg)
		}
	}()
	<-d.Wait()
	return nil
}

// needsTunnels skips the test where there are none, but not on CI.
func (w *world) needsTunnels() {
	w.Helper()
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	w.lacks(err)
	w.must(f.Close())
	for _, program := range []string{"wg", "wg-quick", "unshare"} { // Debian: wireguard-tools, util-linux
		_, err := exec.LookPath(program)
		w.lacks(err)
	}
}

// userspaceWireGuard is a program that wg-quick runs where the kernel has no WireGuard.
func (w *world) userspaceWireGuard(dir string) string {
	w.Helper()
	self, err := os.Executable()
	w.must(err)
	path := filepath.Join(dir, "wireguard")
	w.must(os.WriteFile(path, []byte("#!/bin/sh\n"+
		wireguardEnv+"=\"$1\" "+self+" &\n"+
		"while ! [ -S /run/wireguard/\"$1\".sock ]; do sleep 0.01; done\n"), 0o755))
	return path
}
