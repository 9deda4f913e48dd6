package appservice

import (
	"net"
	"strconv"
	"strings"
	"time"
)

// notifier tells systemd how the service does (sd_notify(3)); without
// NOTIFY_SOCKET it does nothing.
type notifier struct {
	socket   string
	watchdog time.Duration // how often systemd wants to hear; 0: never
}

func newNotifier(getenv func(string) string) notifier {
	n := notifier{socket: getenv("NOTIFY_SOCKET")}
	if us, err := strconv.ParseInt(getenv("WATCHDOG_USEC"), 10, 64); err == nil && us > 0 {
		n.watchdog = time.Duration(us) * time.Microsecond / 2
	}
	return n
}

func (n notifier) send(state string) error {
	if n.socket == "" {
		return nil
	}
	address := n.socket
	if strings.HasPrefix(address, "@") {
		address = "\x00" + address[1:]
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte(state))
	return err
}
