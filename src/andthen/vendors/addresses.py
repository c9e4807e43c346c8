"""Which addresses are the Internet's: to others a call to a vendor is refused unless its table says `private`. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")


def is_public(host: str, *, unless_a_name: bool = False) -> bool:
    """Whether an address is one of the Internet's. IANA's registries of special-purpose addresses, RFC 6890; NAT64 is
    RFC 6052, 6to4 RFC 3056. `unless_a_name`: what is no address passes."""
    try:
        address = ip_address(host)
    except ValueError:
        return unless_a_name
    inner = _inside(address) if isinstance(address, IPv6Address) else address
    if inner is not None:
        return inner.is_global and not inner.is_multicast
    return address in _GLOBAL_UNICAST and address.is_global


def _inside(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 address stands for."""
    if address in _NAT64:
        return IPv4Address(address.packed[-4:])
    return address.ipv4_mapped or address.sixtofour
