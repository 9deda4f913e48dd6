package machine

import (
	"os"
	"os/exec"
	"testing"
)

func TestThisProcess(t *testing.T) {
	p, err := Of(os.Getpid())
	if err != nil || p.RSS <= 0 || p.Peak < p.RSS || p.CPU < 0 {
		t.Errorf("got %+v, %v", p, err)
	}
}

func TestAProcessThatIsGone(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if p, err := Of(cmd.Process.Pid); err == nil {
		t.Errorf("got %+v of a process that ended", p)
	}
}
