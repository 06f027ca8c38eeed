package netlab

import "testing"

func TestKernel(t *testing.T) {
	if !Kernel(3, 14) || !Kernel(1, 99) { // the first with nftables for inet
		t.Error("the kernel is older than what it can do")
	}
	if Kernel(99, 0) {
		t.Error("the kernel is from the future")
	}
}
