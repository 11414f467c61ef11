# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a firewall is to let in, what its rules do let in, and whether somebody would still be admitted. Pure logic.

``wanted`` is what a site declared: ``{"ssh_ports": [22], "vpn_networks": ["10.99.0.0/24"], "vpn_interfaces": ["vpn0"],
"management_addresses": [...], "wireless_networks": [...], "container_interfaces": [...], "ping": True, "services": [{"name",
"ports": ["tcp/443"], "from": ["any"], "wireless"}], "forwards": [{"name", "from", "to", "ports"}], "out": "open", "out_allowed":
[{"name", "to", "ports"}]}``.

An *opening* is one way on which a packet is accepted: ``{"hook": "input", "from": [...], "to": [...], "ports": ["tcp/22"], "in":
[...], "out": [...], "only": [...]}``; addresses are networks or ``any``, C(only) holds further conditions in words. Networks
and ports are kept in one normal form (merged, sorted), so that what was declared and what was observed can be compared.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence

TABLE = "bulwark"
ANY = ["any"]
PROTOCOLS = ("tcp", "udp", "icmp")
KERNEL_NAMES = {"6": "tcp", "17": "udp", "1": "icmp", "58": "icmpv6", "ipv6-icmp": "icmpv6"}
NEIGHBOURS = ("nd-neighbor-advert", "nd-neighbor-solicit", "nd-router-advert")
LISTENERS = ("mld-listener-done", "mld-listener-query", "mld-listener-report", "mld2-listener-report")
ICMPV6_NUMBERS = {
    "130": "mld-listener-query", "131": "mld-listener-report", "132": "mld-listener-done", "134": "nd-router-advert",
    "135": "nd-neighbor-solicit", "136": "nd-neighbor-advert", "137": "nd-redirect", "143": "mld2-listener-report",
}  # fmt: skip


# --- networks and ports -----------------------------------------------------------------------------------------------


def networks(values: Iterable[str], version: int) -> list[str]:
    """Return the networks of one IP version, merged where they touch or overlap, as CIDR, sorted. Raises ValueError.

    A value is a network, an address, or a range ``first-last``.
    """
    spans = []
    for value in values:
        first, _dash, last = str(value).partition("-")
        if last:
            low, high = ipaddress.ip_address(first), ipaddress.ip_address(last)
        else:
            network = ipaddress.ip_network(first, strict=False)
            low, high = network.network_address, network.broadcast_address
        if low.version == version:
            spans.append((int(low), int(high)))
    kind = {4: ipaddress.IPv4Address, 6: ipaddress.IPv6Address}[version]
    found = []
    for low, high in merged(spans):
        found += [str(network) for network in ipaddress.summarize_address_range(kind(low), kind(high))]
    return found


def merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return spans of whole numbers, sorted, those that touch or overlap as one."""
    found: list[tuple[int, int]] = []
    for low, high in sorted(spans):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return found


def port_spans(values: Iterable[str], protocol: str) -> list[tuple[int, int]]:
    """Return (first, last) of each run of ports among entries such as ``tcp/22`` and ``udp/8000-8010``. Raises ValueError."""
    spans = []
    for value in values:
        name, _slash, numbers = str(value).partition("/")
        if name != protocol:
            continue
        first, _dash, last = numbers.partition("-")
        low, high = int(first), int(last or first)
        if not 1 <= low <= high <= 65535:
            raise ValueError(f"{value}: no port, or the end of the range comes before its beginning")
        spans.append((low, high))
    return merged(spans)


def port_names(values: Sequence[str]) -> list[str]:
    """Return entries such as ``tcp/22`` and ``icmp`` in normal form."""
    numbered = [str(value) for value in values if str(value).startswith(("tcp/", "udp/"))]
    found = [f"{protocol}/{span}" for protocol in ("tcp", "udp") for span in written(port_spans(numbered, protocol))]
    return found + sorted({str(value) for value in values} - set(numbered))


def written(spans: Iterable[tuple[int, int]]) -> list[str]:
    """Return spans as text: ``22``, ``8000-8010``."""
    return [str(low) if low == high else f"{low}-{high}" for low, high in spans]


def contains(values: Iterable[str], address: str) -> bool:
    """Return whether an address lies in one of the networks; ``any`` holds all."""
    place = ipaddress.ip_address(address.partition("%")[0])
    if place.version == 6 and place.ipv4_mapped:
        place = place.ipv4_mapped
    return any(value == "any" or place in ipaddress.ip_network(value, strict=False) for value in values)


def overlapping(some: Iterable[str], others: Iterable[str]) -> list[str]:
    """Return, as ``a and b``, each pair of networks of the two lists that have addresses in common."""
    found = []
    for one in some:
        for other in others:
            if "any" in (one, other):
                continue
            left, right = ipaddress.ip_network(one, strict=False), ipaddress.ip_network(other, strict=False)
            if left.version == right.version and left.overlaps(right):
                found.append(f"{one} and {other}")
    return found


# --- what was declared ------------------------------------------------------------------------------------------------


def objections(wanted: Mapping) -> list[str]:
    """Return what cannot be meant, one sentence each with the variables' names; an empty list when all fits together."""
    said = []
    pairs = (
        ("vpn_networks", "management_addresses", "WTH-7.2.1-12: who is in the tunnel must not be taken for a controller"),
        ("wireless_networks", "management_addresses", "WTH-7.9-4d: from wireless networks servers are reached over the VPN only"),
        ("wireless_networks", "vpn_networks", "WTH-7.9-4d: from wireless networks servers are reached over the VPN only"),
    )
    for left, right, why in pairs:
        for pair in overlapping(wanted[left], wanted[right]):
            said.append(f"firewall_{left} and firewall_{right} overlap: {pair} ({why})")
    for kind in ("services", "forwards", "out_allowed"):
        names = [entry["name"] for entry in wanted[kind]]
        for name in sorted({name for name in names if names.count(name) > 1}):
            said.append(f"firewall_{kind}: {name} is declared twice")
        for entry in wanted[kind]:
            for protocol in ("tcp", "udp"):
                try:
                    port_spans(entry["ports"], protocol)
                except ValueError as exc:
                    said.append(f"firewall_{kind} {entry['name']}: {exc}")
    if said:
        return said
    for entry in wanted["services"]:
        taken = [port for port in wanted["ssh_ports"] if within(port_spans(entry["ports"], "tcp"), port)]
        if taken:
            said.append(
                f"firewall_services {entry['name']}: port {taken[0]} is sshd's, who reaches it is set by firewall_vpn_networks "
                "and firewall_management_addresses (WTH-7.2.1-12: servers are reached only through the VPN)"
            )
    for entry in wanted["forwards"]:
        for pair in overlapping(entry["from"], wanted["wireless_networks"]):
            said.append(
                f"firewall_forwards {entry['name']}: from lies in firewall_wireless_networks: {pair} "
                "(WTH-7.9-4d: from wireless networks servers are reached over the VPN only)"
            )
    return said


def within(spans: Iterable[tuple[int, int]], port: int) -> bool:
    """Return whether a port lies in one of the spans."""
    return any(low <= port <= high for low, high in spans)


def admits(wanted: Mapping, address: str, port: int, protocol: str = "tcp", interface: str = "") -> tuple[bool, str]:
    """Return whether a packet to this host would be let in by the wanted rules, and why or why not.

    ``interface`` is where it comes in; without it, a rule that asks for one is taken not to hold.
    """
    if contains(wanted["wireless_networks"], address):
        for entry in wanted["services"]:
            if entry.get("wireless") and serves(entry, address, port, protocol):
                return True, f"firewall_services {entry['name']}"
        return False, f"{address} lies in firewall_wireless_networks"
    if protocol == "tcp" and port in wanted["ssh_ports"]:
        if contains(wanted["management_addresses"], address):
            return True, "firewall_management_addresses"
        if not contains(wanted["vpn_networks"], address):
            return False, f"{address} is in neither firewall_vpn_networks nor firewall_management_addresses"
        if wanted["vpn_interfaces"] and interface not in wanted["vpn_interfaces"]:
            way = interface or "no known interface"
            return False, f"{address} of firewall_vpn_networks comes in by {way}, not by firewall_vpn_interfaces"
        return True, "firewall_vpn_networks"
    for entry in wanted["services"]:
        if serves(entry, address, port, protocol):
            return True, f"firewall_services {entry['name']}"
    return False, f"no entry of firewall_services admits {address} to {protocol}/{port}"


def serves(entry: Mapping, address: str, port: int, protocol: str) -> bool:
    """Return whether an entry of firewall_services lets an address in at a port."""
    return contains(entry["from"], address) and within(port_spans(entry["ports"], protocol), port)


def opening(hook: str, **parts: Sequence[str]) -> dict:
    """Return an opening; what is not said is any."""
    whole = {"hook": hook, "from": ANY, "to": ANY, "ports": ANY, "in": [], "out": [], "only": []}
    return {**whole, **{key.rstrip("_"): list(value) for key, value in parts.items()}}


def lines(hook: str, entry: Mapping, out: Sequence[str] = (), only: Sequence[str] = ()) -> list[dict]:
    """Return the openings of one declared entry: one for each protocol and IP version that its addresses have in common."""
    found = []
    for protocol in PROTOCOLS:
        ports = [value for value in entry["ports"] if str(value).partition("/")[0] == protocol]
        if not ports:
            continue
        sides = [entry.get("from", ANY), entry.get("to", ANY)]
        if all("any" in side for side in sides) and protocol != "icmp":
            found.append(opening(hook, ports=port_names(ports), out=out, only=only))
            continue
        for version in (4, 6):
            source, target = (ANY if "any" in side else networks(side, version) for side in sides)
            if source and target:
                names = port_names(ports)
                if protocol == "icmp":
                    names = [{4: "icmp/echo-request", 6: "icmpv6/echo-request"}[version]]
                found.append(opening(hook, from_=source, to=target, ports=names, out=out, only=only))
    return found


def declared_openings(wanted: Mapping) -> list[dict]:
    """Return every opening that the wanted rules have, those that any host needs included."""
    ssh = [f"tcp/{port}" for port in wanted["ssh_ports"]]
    answers = {"only": ["ct direction reply", "ct state established"]}
    found = [opening("input", in_=["lo"]), opening("input", **answers)]
    for version in (4, 6):
        places = networks(wanted["management_addresses"], version)
        tunnel = networks(wanted["vpn_networks"], version)
        if places:
            found.append(opening("input", from_=places, ports=port_names(ssh)))
        if tunnel:
            found.append(opening("input", from_=tunnel, ports=port_names(ssh), in_=sorted(wanted["vpn_interfaces"])))
    found.append(opening("input", only=["ct state established", "tcp flags rst"]))
    found += [
        opening("input", ports=["icmp", "icmpv6"], only=["ct state related"]),
        opening("input", ports=[f"icmpv6/{name}" for name in NEIGHBOURS], only=["ip6 hoplimit 255"]),
        opening("input", from_=["fe80::/10"], ports=[f"icmpv6/{name}" for name in LISTENERS]),
        opening("input", from_=["fe80::/10"], ports=["udp/546"], only=["udp sport 547"]),
    ]
    if wanted["ping"]:
        found += [opening("input", ports=[f"{kind}/echo-request"], only=["limit"]) for kind in ("icmp", "icmpv6")]
    for pattern in wanted["container_interfaces"]:
        found.append(opening("input", in_=[pattern], ports=["tcp/53"]))
        found.append(opening("input", in_=[pattern], ports=["udp/53"]))
    for entry in wanted["services"]:
        found += lines("input", entry)
        if entry.get("wireless") and wanted["wireless_networks"]:
            found += confined(lines("input", entry), wanted["wireless_networks"])

    found += [opening("forward", **answers), opening("forward", ports=["icmp", "icmpv6"], only=["ct state related"])]
    for entry in wanted["forwards"]:
        found += lines("forward", entry)
    for pattern in wanted["container_interfaces"]:
        if wanted["out"] == "open":
            found.append(opening("forward", in_=[pattern]))
        else:
            for entry in wanted["out_allowed"]:
                found += [{**line, "in": [pattern]} for line in lines("forward", entry)]
        for entry in wanted["services"]:
            published = lines("forward", entry, out=[pattern], only=["ct status dnat", "as published"])
            published = [line for line in published if not any(name.startswith("icmp") for name in line["ports"])]
            found += published
            if entry.get("wireless") and wanted["wireless_networks"]:
                found += confined(published, wanted["wireless_networks"])

    if wanted["out"] == "open":
        return [*found, opening("output")]
    found += [
        opening("output", out=["lo"]),
        opening("output", only=[f"tcp sport {', '.join(written(port_spans(ssh, 'tcp')))}"]),
        opening("output", **answers),
        opening("output", ports=["icmp", "icmpv6"]),
        opening("output", ports=["udp/67"], only=["udp sport 68"]),
        opening("output", to=["ff02::1:2/128"], ports=["udp/547"]),
    ]
    for entry in wanted["out_allowed"]:
        found += lines("output", entry)
    return found


def confined(found: Sequence[dict], places: Sequence[str]) -> list[dict]:
    """Return openings as they are reached from certain networks only; what they say about addresses holds besides."""
    both = []
    for line in found:
        for version in (4, 6):
            inside = networks(places, version)
            if inside and (line["from"] == ANY or networks(line["from"], version)):
                both.append({**line, "from": inside if line["from"] == ANY else common(line["from"], inside, version)})
    return [line for line in both if line["from"]]


def common(some: Sequence[str], others: Sequence[str], version: int) -> list[str]:
    """Return the networks that two lists have in common."""
    found = []
    for one in networks(some, version):
        for other in networks(others, version):
            left, right = ipaddress.ip_network(one), ipaddress.ip_network(other)
            if left.overlaps(right):
                found.append(str(max(left, right, key=lambda network: network.prefixlen)))
    return networks(found, version)


# --- what the kernel has ----------------------------------------------------------------------------------------------


def in_words(found: Mapping) -> str:
    """Return an opening as one sentence, the same for the same opening."""
    said = [found["hook"]]
    for key in ("in", "out", "from", "to", "ports", "only"):
        if found[key] and found[key] != ANY:
            said.append(f"{key} {', '.join(sorted(found[key]))}")
    return "; ".join(said)


def openings(listing: Mapping) -> list[dict]:
    """Return every opening of our table in what C(nft -j list ruleset) printed, as found on the way from its base chains.

    A condition that is not understood goes word by word into C(only), so it cannot pass for a declared opening.
    """
    objects = [item for item in listing.get("nftables", []) if isinstance(item, Mapping)]
    rules: dict[str, list[dict]] = {}
    bases, named = [], {}
    for item in objects:
        kind, entry = next(iter(item.items()))
        if not isinstance(entry, Mapping) or entry.get("family") != "inet" or entry.get("table") != TABLE:
            continue
        if kind == "rule":
            rules.setdefault(entry["chain"], []).append(entry)
        elif kind == "chain" and entry.get("hook") in ("input", "forward", "output"):
            bases.append(entry)
        elif kind in ("set", "map"):
            named[entry["name"]] = entry.get("elem", [])
    found: list[dict] = []
    for base in bases:
        walk(rules, named, base["name"], opening(base["hook"]), found, ())
        if base.get("policy") != "drop" and base["name"] in ("input", "forward", "output"):
            found.append(opening(base["hook"]))
    without = {"input", "forward", "output"} - {base["hook"] for base in bases}
    return found + [opening(hook) for hook in sorted(without)]  # no chain of ours: all is accepted


def strangers(found: Iterable[Mapping], wanted: Mapping) -> list[str]:
    """Return every network that reaches a port of sshd and lies in neither C(vpn_networks) nor C(management_addresses)."""
    known = [ipaddress.ip_network(place, strict=False) for place in [*wanted["vpn_networks"], *wanted["management_addresses"]]]
    said = set()
    for one in found:
        if not reaches(one, "tcp", wanted["ssh_ports"]):
            continue
        for place in one["from"]:
            network = None if place == "any" else ipaddress.ip_network(place)
            if network is None or not any(network.version == other.version and network.subnet_of(other) for other in known):
                said.add(place)
    return sorted(said)


def exposed(listening: Iterable[Mapping], found: Iterable[Mapping], wanted: Mapping) -> list[str]:
    """Return in words what listens and is reached although nobody declared it: ``tcp/8080 (python3)``.

    ``listening`` is ``[{"protocol", "address", "port", "program"}]``.
    """
    found, said = list(found), set()
    for one in listening:
        protocol, port = one["protocol"], one["port"]
        if protocol == "tcp" and port in wanted["ssh_ports"]:
            continue
        if any(within(port_spans(entry["ports"], protocol), port) for entry in wanted["services"]):
            continue
        if any(reaches(way, protocol, [port]) and not set(way["in"]) & set(wanted["container_interfaces"]) for way in found):
            said.add(f"{protocol}/{port} ({one['program'] or 'unknown program'})")
    return sorted(said)


def reaches(one: Mapping, protocol: str, ports: Iterable[int]) -> bool:
    """Return whether a stranger's first packet to one of the ports may pass an opening."""
    if one["hook"] != "input" or one["in"] == ["lo"] or "udp sport 547" in one["only"]:
        return False
    if {"ct direction reply", "ct state related", "tcp flags rst", "ct state established"} & set(one["only"]):
        return False
    if {"any", protocol} & set(one["ports"]):
        return True
    spans = port_spans([name for name in one["ports"] if "/" in name and " " not in name], protocol)
    return any(within(spans, port) for port in ports) or any(" " in name for name in one["ports"])


def walk(rules: Mapping, named: Mapping, chain: str, so_far: dict, found: list[dict], above: tuple[str, ...]) -> None:
    """Add what a chain accepts, and the chains it leads to, under the conditions met so far."""
    for rule in rules.get(chain, []):
        here = {key: list(value) if isinstance(value, list) else value for key, value in so_far.items()}
        for part in rule.get("expr", []):
            kind, value = next(iter(part.items())) if isinstance(part, Mapping) else (str(part), None)
            if kind == "match":
                narrow(here, value, named)
            elif kind == "limit":
                here["only"].append("limit")
            elif kind in ("accept", "queue"):
                if here["from"] and here["to"]:  # else the conditions on the way exclude each other
                    found.append(tidy(here))
            elif kind in ("jump", "goto"):
                target = value["target"]
                if target not in above and len(above) < 16:
                    walk(rules, named, target, here, found, (*above, chain))
            elif kind == "vmap":
                here["only"].append(f"vmap {value}")
                found.append(tidy(here))
            elif kind not in ("counter", "log", "drop", "reject", "return", "set"):
                here["only"].append(f"{kind} {value}")


def tidy(here: Mapping) -> dict:
    """Return an opening in normal form."""
    return {
        **here,
        "ports": port_names(here["ports"]) if here["ports"] != ANY else ANY,
        **{key: sorted(set(here[key])) for key in ("in", "out", "only")},
    }


def narrow(here: dict, match: Mapping, named: Mapping) -> None:
    """Add one condition of a rule to an opening."""
    left, op = match["left"], match["op"]
    right = texts(match["right"], named)
    payload = left.get("payload", {}) if isinstance(left, Mapping) else {}
    meta = left.get("meta", {}).get("key") if isinstance(left, Mapping) else None
    ct = left.get("ct", {}) if isinstance(left, Mapping) else {}
    side = {"saddr": "from", "daddr": "to"}.get(payload.get("field", ""))
    if op == "==" and payload.get("protocol") in ("ip", "ip6") and side:
        version = {"ip": 4, "ip6": 6}[payload["protocol"]]
        places = networks(right, version)
        here[side] = places if here[side] == ANY else common(here[side], places, version)
    elif op == "==" and meta in ("iifname", "oifname"):
        here[{"iifname": "in", "oifname": "out"}[meta]] += right
    elif op == "==" and payload.get("field") == "dport" and payload.get("protocol") in ("tcp", "udp"):
        wanted = [f"{payload['protocol']}/{value}" for value in right]
        here["ports"] = wanted if here["ports"] in (ANY, [payload["protocol"]]) else [f"{here['ports']} and {wanted}"]
    elif op == "==" and meta == "l4proto":
        named_protocols = sorted(KERNEL_NAMES.get(value, value) for value in right)
        if here["ports"] == ANY:
            here["ports"] = named_protocols
        elif not {name.partition("/")[0] for name in here["ports"]} <= set(named_protocols):
            here["ports"] = [name for name in here["ports"] if name.partition("/")[0] in named_protocols] or ["none"]
    elif op == "==" and payload.get("protocol") in ("icmp", "icmpv6") and payload.get("field") == "type":
        here["ports"] = [f"{payload['protocol']}/{ICMPV6_NUMBERS.get(value, value)}" for value in right]
    elif op == "==" and ct.get("key") == "proto-dst" and ct.get("dir") == "original":
        here["ports"] = [f"{protocol}/{value}" for protocol in here["ports"] for value in right]
        here["only"].append("as published")
    elif op == "==" and payload:
        here["only"].append(f"{payload.get('protocol')} {payload.get('field')} {', '.join(right)}")
    elif ct.get("key") in ("state", "status", "direction") and op in ("==", "in"):
        here["only"].append(f"ct {ct['key']} {', '.join(sorted(right))}")
    elif is_reset(match):
        here["only"].append("tcp flags rst")
    else:
        here["only"].append(f"{left} {op} {match['right']}")


def is_reset(match: Mapping) -> bool:
    """Return whether a condition holds for TCP resets: C(tcp flags rst), however this release of nft writes it."""
    flags = {"payload": {"protocol": "tcp", "field": "flags"}}
    if match["left"] == flags:
        return match["op"] == "in" and match["right"] == "rst"
    if match["left"] not in ({"&": [flags, "rst"]}, {"&": ["rst", flags]}):
        return False
    return (match["op"], match["right"]) in (("==", "rst"), ("!=", 0))


def texts(right: object, named: Mapping) -> list[str]:
    """Return the right side of a condition as a list of texts; a named set is looked up."""
    if isinstance(right, str) and right.startswith("@"):
        right = {"set": named.get(right[1:], [])}
    if isinstance(right, Mapping) and "set" in right:
        inner = right["set"] if isinstance(right["set"], list) else [right["set"]]
        return [text for item in inner for text in texts(item, named)]
    if isinstance(right, list):
        return [text for item in right for text in texts(item, named)]
    if isinstance(right, Mapping) and "prefix" in right:
        return [f"{right['prefix']['addr']}/{right['prefix']['len']}"]
    if isinstance(right, Mapping) and "range" in right:
        return ["-".join(text for end in right["range"] for text in texts(end, named))]
    if isinstance(right, Mapping) and "elem" in right:
        return texts(right["elem"]["val"], named)
    # nft 1.0.6 writes ports it has no protocol for as "0x1f90 [invalid type]"
    odd = re.fullmatch(r"0x([0-9a-f]+) \[invalid type\]", str(right))
    return [str(int(odd.group(1), 16)) if odd else str(right)]
