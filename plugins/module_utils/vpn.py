# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a VPN gateway works out before it acts: when an idle tunnel is ended, who has which address, what cannot work. Pure."""

from __future__ import annotations

import hashlib
import ipaddress

# OpenVPN tells the client to stop, and takes its own side down 5 seconds later; as much again for a slow machine.
KILL_SECONDS = 10


def idle_plan(idle_seconds: int) -> dict[str, int]:
    """Return how an idle tunnel is ended within ``idle_seconds``, all in seconds.

    poll       from one look at the counters to the next
    watchdog   after this long without a look systemd ends the watcher, and the VPN with it
    kill       from the decision until the tunnel is gone
    end_after  without activity for this long, the tunnel is ended at the next look
    worst_case what worst_case_seconds makes of these, never more than idle_seconds
    """
    poll = min(10, max(1, idle_seconds // 100))
    watchdog = min(60, max(8, idle_seconds // 30))
    end_after = idle_seconds - poll - watchdog - KILL_SECONDS
    plan = {"poll": poll, "watchdog": watchdog, "kill": KILL_SECONDS, "end_after": end_after}
    return {**plan, "worst_case": worst_case_seconds(end_after, poll, watchdog, KILL_SECONDS)}


def worst_case_seconds(end_after: int, poll: int, watchdog: int, kill: int) -> int:
    """Return for how long, at worst, a tunnel outlives the last byte a person caused.

    Activity counts from the start of the interval it was seen in, so the interval itself delays nothing. What does: the time
    to the next look, a look that is late (by at most the watchdog's time, then everything stops), and the killing.
    """
    return end_after + poll + watchdog + kill


def addresses(users: list[dict], pool4: str, pool6: str = "") -> list[dict]:
    """Return ``[{"name", "address", "address6"}]``: the tunnel address of each user, sorted by name.

    A user keeps the address that is declared; the others get one that follows from their name, so that coming and going of
    users moves nobody else (but where two names lead to the same address). The first address is the gateway's.
    """
    pool = ipaddress.ip_network(pool4)
    taken = {user["address"] for user in users if user.get("address")} | {str(pool[1])}
    found = []
    for user in sorted(users, key=lambda entry: entry["name"]):
        address = user.get("address") or ""
        if not address:
            room = pool.num_addresses - 3  # network, gateway and broadcast are nobody's
            start = int.from_bytes(hashlib.sha256(user["name"].encode()).digest()[:8], "big") % room if room > 0 else 0
            places = (str(pool[2 + (start + step) % room]) for step in range(room))
            address = next((place for place in places if place not in taken), "")
            if not address:
                raise ValueError(f"{pool4} has no address left for {user['name']}")
            taken.add(address)
        inside = ipaddress.ip_address(address) in pool
        offset = int(ipaddress.ip_address(address)) - int(pool.network_address) if inside else 1
        found.append(
            {"name": user["name"], "address": address,
             "address6": str(ipaddress.ip_network(pool6)[offset]) if pool6 else ""}
        )  # fmt: skip
    return found


def network(text: str) -> dict:
    """Return a network taken apart for configuration files: version, address, netmask, prefix, first (address) and text."""
    parsed = ipaddress.ip_network(text)
    return {
        "version": parsed.version,
        "address": str(parsed.network_address),
        "netmask": str(parsed.netmask),
        "prefix": parsed.prefixlen,
        "first": str(parsed[1] if parsed.num_addresses > 1 else parsed[0]),
        "text": str(parsed),
    }


def objections(wanted: dict, seen: dict | None = None) -> list[str]:
    """Return in words everything about the networks that cannot work or would shut somebody out.

    ``wanted`` has network, network6, routes, address (the gateway's public name or address) and users as the role's variables
    hold them. ``seen`` is what the collector saw of the host: ``networks`` [{network, interface}] it is attached to and
    ``peers`` [{address, interface}] that are logged in over SSH; those may only be in the pool when they come through the tunnel.
    """
    said: list[str] = [] if wanted.get("address") else ["vpn_gateway_address: must be set, it goes into people's profiles"]
    pools = []
    for key in ("network", "network6"):
        if not wanted.get(key):
            continue
        try:
            pools.append((f"vpn_gateway_{key}", ipaddress.ip_network(wanted[key])))
        except ValueError as exc:
            said.append(f"vpn_gateway_{key} = {wanted[key]!r}: {exc}")
    routes = []
    for route in wanted.get("routes") or []:
        try:
            routes.append(ipaddress.ip_network(route))
        except ValueError as exc:
            said.append(f"vpn_gateway_routes = {route!r}: {exc}")
    for number, route in enumerate(routes):
        for name, pool in pools:
            if _overlap(route, pool):
                said.append(f"vpn_gateway_routes = {route}: overlaps with {name} {pool}, the people's own addresses")
        for other in routes[:number]:
            if _overlap(route, other):
                said.append(f"vpn_gateway_routes = {route}: overlaps with {other}")
    try:
        public = ipaddress.ip_address(wanted.get("address") or "")
    except ValueError:
        public = None  # a name: what it stands for is for the client's resolver to say
    for name, place in [*pools, *(("vpn_gateway_routes", route) for route in routes)]:
        if public is not None and public in place:
            said.append(f"vpn_gateway_address = {public}: lies in {name} {place}, so the tunnel would lead into itself")
    said += _user_objections(wanted.get("users") or [], pools)
    for name, pool in pools:
        for attached in (seen or {}).get("networks", []):
            if attached["interface"] != "vpn0" and _overlap(pool, ipaddress.ip_network(attached["network"])):
                said.append(f"{name} = {pool}: overlaps with {attached['network']} on {attached['interface']} of this gateway")
        for peer in (seen or {}).get("peers", []):
            if peer["interface"] != "vpn0" and ipaddress.ip_address(peer["address"]) in pool:
                said.append(f"{name} = {pool}: holds {peer['address']}, from where this gateway is being managed right now")
    return said


def _user_objections(users: list[dict], pools: list) -> list[str]:
    said = []
    names = [user["name"] for user in users]
    said += [f"vpn_gateway_users = {name}: is listed twice" for name in sorted({n for n in names if names.count(n) > 1})]
    given = [user["address"] for user in users if user.get("address")]
    said += [f"vpn_gateway_users = {a}: the address of two users" for a in sorted({a for a in given if given.count(a) > 1})]
    pool = next((pool for name, pool in pools if name == "vpn_gateway_network"), None)
    if pool is None:
        return said
    room = pool.num_addresses - 3
    if len(users) > room:
        said.append(f"vpn_gateway_users: {len(users)} users, but vpn_gateway_network {pool} has room for {room}")
    for user in users:
        if not user.get("address"):
            continue
        try:
            address = ipaddress.ip_address(user["address"])
        except ValueError as exc:
            said.append(f"vpn_gateway_users = {user['name']}: {exc}")
            continue
        if address not in pool or address in (pool[0], pool[1], pool[-1]):
            said.append(f"vpn_gateway_users = {user['name']}: {address} is no address for a user in vpn_gateway_network {pool}")
    return said


def _overlap(one, other) -> bool:
    return one.version == other.version and one.overlaps(other)
