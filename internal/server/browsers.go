package server

import (
	"fmt"
	"net"
	"net/http"
	"strings"
)

// Hosts are the host names that requests to a listener may have.
type Hosts struct {
	// Names that are allowed in addition to localhost, without a port.
	Names []string
	// Any allows every name. Then tokens keep out browsers, because a page of another site does not
	// have one.
	Any bool
}

// Guard refuses requests that a browser sends on behalf of another site's page. With DNS rebinding,
// a page's owner points its name at this machine, but that name is not one of hosts. For a page of
// another origin, the browser states the origin. Programs other than browsers send neither. refuse
// responds.
func Guard(
	hosts Hosts, refuse func(w http.ResponseWriter, r *http.Request, why string), next http.Handler,
) http.Handler {
	allowed := map[string]bool{"localhost": true, "127.0.0.1": true, "::1": true}
	for _, name := range hosts.Names {
		allowed[hostname(name)] = true
	}
	// It compares the headers Sec-Fetch-Site and Origin with the request's host.
	cross := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if name := hostname(r.Host); !hosts.Any && name != "" && !allowed[name] {
			refuse(w, r, fmt.Sprintf("host %q is not allowed: add it to the setting hosts", short(name)))
			return
		}
		// Only browsers send these headers, and a page cannot remove them.
		if r.Header.Get("Sec-Fetch-Site") != "" || r.Header.Get("Origin") != "" {
			checked := *r
			// Reads are refused, too, because responses contain customers' data.
			checked.Method = http.MethodPost
			if err := cross.Check(&checked); err != nil {
				refuse(w, r, "cross-origin requests are not allowed")
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// hostname returns a host without its port, in a canonical form for comparison.
func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.Trim(host, "[]"), ".")
	if ip := net.ParseIP(host); ip != nil {
		return ip.String()
	}
	return strings.ToLower(host)
}

// short truncates a name for an error, because the name is the client's choice.
func short(name string) string {
	const most = 64
	if len(name) > most {
		return name[:most] + "…"
	}
	return name
}
