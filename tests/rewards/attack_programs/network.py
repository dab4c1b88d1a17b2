"""Reaching anybody. The host listens on every kind of address and looks at what arrives."""

from tests.rewards.attacks import Attack

ATTACKS = (
    Attack(
        "tcp",
        "no connection to the host or beyond",
        """
def connect(family, address):
    with socket.socket(family) as one:
        one.settimeout(0.4)
        try:
            one.connect(address)
            one.sendall(b"hello")
            return "connected"
        except TimeoutError:
            return "packets went out"  # and no answer came
attempt("loopback", lambda: connect(socket.AF_INET, ("127.0.0.1", HOST["tcp_port"])))
attempt("loopback, version 6", lambda: connect(socket.AF_INET6, ("::1", HOST["tcp_port"])))
attempt("the host's address", lambda: connect(socket.AF_INET, (HOST["address"], HOST["tcp_port"])))
attempt("docker's bridge", lambda: connect(socket.AF_INET, ("172.17.0.1", HOST["tcp_port"])))
attempt("outside", lambda: connect(socket.AF_INET, ("192.0.2.1", 80)))
attempt("outside, version 6", lambda: connect(socket.AF_INET6, ("2001:db8::1", 80)))
attempt("link-local", lambda: connect(socket.AF_INET, ("169.254.1.1", 80)))
attempt("interfaces", lambda: [one for _, one in socket.if_nameindex() if not one.startswith(
    ("lo", "sit", "tunl", "ip6tnl", "gre", "erspan", "ip_vti", "ip6_vti", "ip6gre"))] or None)
""",
    ),
    Attack(
        "udp_and_dns",
        "no packet leaves",
        """
def send(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.settimeout(0.3)
        one.sendto(b"hello", address)
        # What reaches loopback may be its own: the host looks.
        return None if address[0].startswith("127.") else "sent"
attempt("loopback", lambda: send(("127.0.0.1", HOST["udp_port"])))
attempt("the host's address", lambda: send((HOST["address"], HOST["udp_port"])))
attempt("outside", lambda: send(("192.0.2.53", 53)))
attempt("broadcast", lambda: send(("255.255.255.255", 9)))
attempt("multicast", lambda: send(("224.0.0.251", 5353)))
attempt("names", lambda: in_child(lambda: socket.getaddrinfo("example.com", 80), 1.0))
""",
    ),
    Attack(
        "raw_packets",
        "no raw socket of any kind",
        """
attempt("icmp", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).fileno())
attempt("raw ip", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 255).fileno())
attempt("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0300).fileno())
attempt("packet, cooked", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 8).fileno())
attempt("tun", lambda: os.open("/dev/net/tun", os.O_RDWR))
""",
    ),
    Attack(
        "unix_sockets",
        "no socket of the host can be found or reached",
        """
def connect(address):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        try:
            with socket.socket(socket.AF_UNIX, kind) as one:
                one.settimeout(0.3)
                one.connect(address)
                one.send(b"hello")
                return "connected"
        except OSError as error:
            last = error
    raise last
attempt("by path", lambda: connect(HOST["unix_path"]))
attempt("abstract", lambda: connect("\\0" + HOST["abstract"]))
for path in ("/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock",
             "/run/dbus/system_bus_socket", "/run/systemd/private", "/run/nscd/socket"):
    attempt("known " + path, lambda: connect(path))
def found():
    sockets = []
    for folder, folders, files in os.walk("/"):
        folders[:] = [one for one in folders if os.path.join(folder, one) not in (
            "/proc", "/sys", "/usr", "/lib", "/bin", "/sbin", "/lib64")]
        for one in files:
            path = os.path.join(folder, one)
            try:
                if stat.S_ISSOCK(os.lstat(path).st_mode):
                    sockets.append(path)
            except OSError:
                pass
    return sockets or None
attempt("sockets in the file system", found)
attempt("names of the host's sockets", lambda: [line for line in open("/proc/net/unix")
    if HOST["abstract"] in line or HOST["unix_path"] in line] or None)
attempt("the host's connections", lambda: [line for line in open("/proc/net/tcp")][1:] or None)
""",
    ),
    Attack(
        "other_families",
        "no family that is outside of network namespaces, or that an exercise never needs",
        """
FAMILIES = dict(alg=38, vsock=40, packet=17, bluetooth=31, can=29, tipc=30, rds=21, key=15, xdp=44,
                nfc=39, kcm=41, qipcrtr=42, smc=43, ax25=3, ipx=4, appletalk=5, x25=9, llc=26,
                phonet=35, ieee802154=36, caif=37, isdn=34, mctp=45)
for name, number in FAMILIES.items():
    attempt("family " + name, lambda: next(
        LIBC.socket(number, kind, 0) for kind in (2, 1, 3, 5) if LIBC.socket(number, kind, 0) >= 0))
""",
    ),
    Attack(
        "netlink",
        "what the kernel tells is of the sandbox's own empty network; nothing can be changed",
        """
def ask(kind, flags, body):
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as one:
        one.settimeout(0.3)
        one.send(struct.pack("IHHII", 16 + len(body), kind, flags, 1, 0) + body)
        return one.recv(65536)
def changed():
    answer = ask(16, 0x5, struct.pack("BBHiII", 0, 0, 0, 1, 0, 1))  # RTM_NEWLINK: lo down
    return "changed" if struct.unpack_from("i", answer, 16)[0] == 0 else None
attempt("take an interface down", changed)
attempt("audit", lambda: socket.socket(16, socket.SOCK_RAW, 9).bind((0, 1)) or "joined")
attempt("kernel events", lambda: socket.socket(16, socket.SOCK_RAW, 15).bind((0, 2)) or "joined")
""",
    ),
    Attack(
        "listens",
        "a port that it opens is its own (the host tries to connect meanwhile)",
        """
def visited():
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(("0.0.0.0", HOST["free_port"]))
        one.listen()
        one.settimeout(0.8)
        return bool(one.accept())
attempt("a visitor", visited)
""",
    ),
)
