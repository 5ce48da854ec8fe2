# Outbound connections: BPF programs, which a shell cannot attach; `adit redirect apply` does.
ip -4 route replace local default dev lo table 44311
ip -4 rule del priority 111 fwmark 0x111/0xfff lookup 44311 2>/dev/null; ip -4 rule add priority 111 fwmark 0x111/0xfff lookup 44311
ip -6 route replace local default dev lo table 44311
ip -6 rule del priority 111 fwmark 0x111/0xfff lookup 44311 2>/dev/null; ip -6 rule add priority 111 fwmark 0x111/0xfff lookup 44311
nft -f - <<'END'
table inet adit
delete table inet adit
table inet adit {
	chain inbound {
		type filter hook prerouting priority mangle; policy accept;
		iif lo return comment "from this namespace"
		meta l4proto != tcp return
		fib daddr type != local return comment "forwarded: not to an address of this namespace"
		ct direction reply return comment "opened here"
		meta l4proto tcp ct mark & 0xfff == 0x112 tproxy to :15006 accept comment "captured at its first packet"
		meta l4proto tcp ct mark & 0xfff == 0x112 reject with tcp reset comment "adit does not listen"
		tcp flags & (fin|syn|rst|ack) != syn return comment "only first packets decide"
		tcp dport { 15000, 15008, 15020-15021, 15053, 15080 } return comment "adit's own doors"
		ip6 saddr fe80::/10 return comment "link-local"
		meta l4proto tcp counter ct mark set ct mark & 0xfffff000 | 0x112 tproxy to :15006 accept comment "captured"
		meta l4proto tcp ct mark & 0xfff == 0x112 reject with tcp reset comment "adit does not listen"
	}

	# The client may have a connection with the same two ends, in conntrack's eyes: keep them apart.
	chain borrowed_zone {
		type filter hook output priority raw; policy accept;
		meta l4proto tcp oif lo meta mark & 0xfff == 0x539 fib saddr type != local ct original zone set 273
	}

	# The application sees a port that no client chooses by itself, so that the ends never meet in a socket table.
	chain borrowed_port {
		type nat hook postrouting priority srcnat; policy accept;
		oif lo tcp flags & (fin|syn|rst|ack) == syn ct mark & 0xfff == 0x111 snat to :1024-32767
	}

	chain borrowed {
		type route hook output priority mangle; policy accept;
		meta l4proto != tcp return
		ct direction original oif lo meta mark & 0xfff == 0x539 fib saddr type != local ct mark set ct mark & 0xfffff000 | 0x111 return comment "opened by adit from a client's address"
		ct direction reply ct mark & 0xfff == 0x111 meta mark set meta mark & 0xfffff000 | 0x111 comment "replies come back on lo by their mark"
	}
}
END
ip -4 rule del priority 112 fwmark 0x112/0xfff lookup 44311 2>/dev/null
ip -6 rule del priority 112 fwmark 0x112/0xfff lookup 44311 2>/dev/null
true
