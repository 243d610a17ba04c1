package vcsim

import (
	"net"
	"syscall"
)

// reservePort keeps a port on which nothing listens, so that connections to it are refused and no other program takes
// it. The returned func gives the port up. Where the port cannot be reserved it stays free, which is nearly as good.
func reservePort(addr *net.TCPAddr) (release func()) {
	ip := addr.IP.To4()
	if ip == nil {
		return func() {}
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		return func() {}
	}

	syscall.CloseOnExec(fd)
	_ = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	_ = syscall.Bind(fd, &syscall.SockaddrInet4{Port: addr.Port, Addr: [4]byte(ip)})
	return func() { _ = syscall.Close(fd) }
}
