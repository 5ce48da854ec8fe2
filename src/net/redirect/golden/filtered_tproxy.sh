ip -4 route replace local default dev lo table 44311
ip -4 rule del priority 111 fwmark 0x111/0xfff lookup 44311 2>/dev/null; ip -4 rule add priority 111 fwmark 0x111/0xfff lookup 44311
ip -4 rule del priority 112 fwmark 0x112/0xfff lookup 44311 2>/dev/null; ip -4 rule add priority 112 fwmark 0x112/0xfff lookup 44311
ip -6 route replace local default dev lo table 44311
ip -6 rule del priority 111 fwmark 0x111/0xfff lookup 44311 2>/dev/null; ip -6 rule add priority 111 fwmark 0x111/0xfff lookup 44311
ip -6 rule del priority 112 fwmark 0x112/0xfff lookup 44311 2>/dev/null; ip -6 rule add priority 112 fwmark 0x112/0xfff lookup 44311
nft -f - <<'END'
table inet adit
delete table inet adit
table inet adit {
	# The kernel takes the element out when the time is over; then nothing new is captured.
	set armed {
		type inet_proto
		flags timeout
		elements = { tcp timeout 60s }
	}

	chain outbound {
		type route hook output priority mangle; policy accept;
		meta l4proto != tcp return
		meta mark 0x10539 return comment "opened by adit"
		meta skuid 1337 return comment "opened by adit"
		oif lo return comment "to an address of this namespace"
		ct direction reply return comment "accepted here"
		ct mark & 0xfff == 0x112 meta mark set meta mark & 0xfffff000 | 0x112 return comment "captured at its first packet"
		tcp flags & (fin|syn|rst|ack) != syn return comment "only first packets decide"
		meta l4proto != @armed return comment "rolled back: not confirmed in time"
		ip6 daddr fe80::/10 return comment "link-local"
		ip daddr { 10.1.0.0/16, 192.0.2.7/32 } return comment "excluded"
		ip6 daddr { fd00:1::/32 } return comment "excluded"
		tcp dport { 25, 8000-8200 } return comment "excluded"
		counter ct mark set ct mark & 0xfffff000 | 0x112 meta mark set meta mark & 0xfffff000 | 0x112 comment "captured: comes back on lo by its mark"
	}

	# tproxy does not exist in the output hook.
	chain outbound_returned {
		type filter hook prerouting priority mangle; policy accept;
		iif lo meta l4proto tcp meta mark & 0xfff == 0x112 tproxy to :15001 accept
		iif lo meta l4proto tcp meta mark & 0xfff == 0x112 reject with tcp reset comment "adit does not listen"
	}

	chain inbound {
		type filter hook prerouting priority mangle; policy accept;
		iif lo return comment "from this namespace"
		meta l4proto != tcp return
		fib daddr type != local return comment "forwarded: not to an address of this namespace"
		ct direction reply return comment "opened here"
		meta l4proto tcp ct mark & 0xfff == 0x112 tproxy to :15006 accept comment "captured at its first packet"
		meta l4proto tcp ct mark & 0xfff == 0x112 reject with tcp reset comment "adit does not listen"
		tcp flags & (fin|syn|rst|ack) != syn return comment "only first packets decide"
		meta l4proto != @armed return comment "rolled back: not confirmed in time"
		tcp dport { 15000, 15008, 15020-15021, 15053, 15080 } return comment "adit's own doors"
		ip6 saddr fe80::/10 return comment "link-local"
		ip saddr { 169.254.7.127/32 } return comment "excluded"
		tcp dport != { 80, 443 } return comment "not included"
		meta l4proto tcp counter ct mark set ct mark & 0xfffff000 | 0x112 tproxy to :15006 accept comment "captured"
		meta l4proto tcp ct mark & 0xfff == 0x112 reject with tcp reset comment "adit does not listen"
	}

	# The client may have a connection with the same two ends, in conntrack's eyes: keep them apart.
	chain borrowed_zone {
		type filter hook output priority raw; policy accept;
		meta l4proto tcp oif lo meta mark 0x10539 fib saddr type != local ct original zone set 273
		meta l4proto tcp oif lo meta skuid 1337 fib saddr type != local ct original zone set 273
	}

	# The application sees a port that no client chooses by itself, so that the ends never meet in a socket table.
	chain borrowed_port {
		type nat hook postrouting priority srcnat; policy accept;
		oif lo tcp flags & (fin|syn|rst|ack) == syn ct mark & 0xfff == 0x111 snat to :1024-32767
	}

	chain borrowed {
		type route hook output priority mangle; policy accept;
		meta l4proto != tcp return
		ct direction original oif lo meta mark 0x10539 fib saddr type != local ct mark set ct mark & 0xfffff000 | 0x111 return comment "opened by adit from a client's address"
		ct direction original oif lo meta skuid 1337 fib saddr type != local ct mark set ct mark & 0xfffff000 | 0x111 return comment "opened by adit from a client's address"
		ct direction reply ct mark & 0xfff == 0x111 meta mark set meta mark & 0xfffff000 | 0x111 comment "replies come back on lo by their mark"
	}
}
END
true
