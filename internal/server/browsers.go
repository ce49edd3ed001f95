package server

import (
	"fmt"
	"net"
	"net/http"
	"strings"
)

// Hosts says by which names a listener may be called.
type Hosts struct {
	// Names that are allowed, without a port.
	Names []string
	// Any allows every name. Browsers are kept out by tokens then, which a page of another site
	// does not have.
	Any bool
}

// Guard refuses what a browser sends because another site's page told it to. A name that the page's
// owner has pointed at this machine (DNS rebinding) is none of the hosts' names; and a page of
// another origin is named by the browser itself. Programs other than browsers send neither. refuse
// answers.
func Guard(hosts Hosts, refuse func(w http.ResponseWriter, r *http.Request, why string), next http.Handler) http.Handler {
	allowed := map[string]bool{"localhost": true, "127.0.0.1": true, "::1": true}
	for _, name := range hosts.Names {
		allowed[hostname(name)] = true
	}
	cross := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if name := hostname(r.Host); !hosts.Any && name != "" && !allowed[name] {
			refuse(w, r, fmt.Sprintf("this server is not called %q; names that it answers to beside localhost stand in the setting hosts", short(name)))
			return
		}
		if r.Header.Get("Sec-Fetch-Site") != "" || r.Header.Get("Origin") != "" {
			asked := *r
			asked.Method = http.MethodPost // reading is refused, too: answers hold customers' data
			if err := cross.Check(&asked); err != nil {
				refuse(w, r, "requests from another site's page are not taken")
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// hostname returns a host without its port, as names are compared.
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

func short(name string) string {
	const most = 64
	if len(name) > most {
		return name[:most] + "…"
	}
	return name
}
