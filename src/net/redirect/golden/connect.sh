# At the sockets: BPF programs, which a shell cannot attach; `adit redirect apply` does.
nft -f - <<'END'
table inet adit
delete table inet adit
table inet adit {
	chain inbound {
		type filter hook prerouting priority mangle; policy accept;
		iif lo return comment "from this namespace"
		meta l4proto != tcp return
		fib daddr type != local return comment "forwarded: not to an address of this namespace"
		tcp dport { 15000, 15008, 15020-15021, 15053, 15080 } return comment "adit's own doors"
		ip6 saddr fe80::/10 return comment "link-local"
		tcp flags & (fin|syn|rst|ack) != syn tproxy to :15006 accept comment "captured at its first packet"
		tcp flags & (fin|syn|rst|ack) != syn return comment "not captured"
		meta l4proto tcp counter tproxy to :15006 accept comment "captured"
		meta l4proto tcp reject with tcp reset comment "adit does not listen"
	}

}
END
ip -4 rule del priority 111 fwmark 0x111/0xfff lookup 44311 2>/dev/null
ip -4 rule del priority 112 fwmark 0x112/0xfff lookup 44311 2>/dev/null
ip -4 route del local default dev lo table 44311 2>/dev/null
ip -6 rule del priority 111 fwmark 0x111/0xfff lookup 44311 2>/dev/null
ip -6 rule del priority 112 fwmark 0x112/0xfff lookup 44311 2>/dev/null
ip -6 route del local default dev lo table 44311 2>/dev/null
true
