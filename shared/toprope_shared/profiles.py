"""What each broker takes: limits as frozen values, so that no part of the transfer has to know a broker's name.

The sender paces itself by the profile; a test holds every packet of a whole transfer against every profile. A limit of 0 is
none that is known. (D) marks what the broker's own documentation says, (K) what is common knowledge and was not run here.
"""

from __future__ import annotations

from dataclasses import dataclass

from toprope_shared.errors import InputError

DEFAULT = "nats"


@dataclass(frozen=True, slots=True)
class Profile:
    """One broker's limits.

    Attributes:
        max_payload: bytes of a PUBLISH's payload.
        max_packet: bytes of a whole MQTT packet.
        messages_per_s, bytes_per_s: in one second on one connection; 0 is no limit.
        max_slashes, max_topic_bytes: of a topic name or filter.
        max_filters: topic filters in one SUBSCRIBE.
        max_subscriptions: on one connection; 0 is no limit.
        max_client_id_bytes: of a client's id.
        max_retained: bytes of a retained message; 0 is none are kept.
        max_qos: highest quality of service.
    """

    name: str
    max_payload: int
    max_packet: int
    messages_per_s: int = 0
    bytes_per_s: int = 0
    max_slashes: int = 0
    max_topic_bytes: int = 65_535
    max_filters: int = 0
    max_subscriptions: int = 0
    max_client_id_bytes: int = 65_535
    max_retained: int = 1 << 20
    max_qos: int = 2

    def rate(self, wanted: int) -> int:
        """Return the lower of the wanted bytes a second and the broker's; 0 is no limit."""
        return min((one for one in (wanted, self.bytes_per_s) if one), default=0)


_KIB, _MIB = 1 << 10, 1 << 20

PROFILES = {
    profile.name: profile
    for profile in (
        # AWS IoT Core endpoints and quotas, "message broker and protocol limits" (D): 128 KB a message, 100 publishes and
        # 512 KB a second and 50 subscriptions a connection, 8 filters a SUBSCRIBE, 7 slashes, 256 bytes of topic, 128 of
        # client id, QoS 0 and 1; retained messages up to the same 128 KB (K).
        Profile(
            "aws-iot",
            max_payload=128_000,
            max_packet=128_000 + 512,
            messages_per_s=100,
            bytes_per_s=512_000,
            max_slashes=7,
            max_topic_bytes=256,
            max_filters=8,
            max_subscriptions=50,
            max_client_id_bytes=128,
            max_retained=128_000,
            max_qos=1,
        ),
        # Azure Event Grid namespaces, "quotas and limits": 512 KB a message (K), 1 MB and 1,000 messages a second a session
        # (D), 8 segments (K), retained messages up to 64 KB (D), no QoS 2 (K).
        Profile(
            "azure",
            max_payload=512_000,
            max_packet=512_000,
            messages_per_s=1000,
            bytes_per_s=1_000_000,
            max_slashes=7,
            max_topic_bytes=256,
            max_filters=10,
            max_subscriptions=50,
            max_client_id_bytes=128,
            max_retained=64_000,
            max_qos=1,
        ),
        # EMQX, mqtt.max_packet_size 1 MB, mqtt.max_topic_levels 128 (D/K), client id up to 65,535 (K).
        Profile("emqx", max_payload=_MIB - _KIB, max_packet=_MIB, max_slashes=127, max_retained=_MIB),
        # HiveMQ Cloud: 5 MB a message (K); the Community Edition takes 256 MB.
        Profile("hivemq", max_payload=5_000_000, max_packet=5_000_000, max_retained=5_000_000),
        # nats-server: max_payload 1 MB by default and in our generated configuration; a client that lags by max_pending
        # (64 MB) is cut off (run here).
        Profile("nats", max_payload=_MIB, max_packet=_MIB, max_retained=_MIB, max_qos=2),
        # mosquitto: 256 MB by the protocol, 200 levels (K).
        Profile(
            "mosquitto", max_payload=256 * _MIB - _KIB, max_packet=256 * _MIB, max_slashes=199, max_retained=256 * _MIB
        ),
    )
}


def find_profile(name: str) -> Profile:
    """Return a profile by its name.

    Raises:
        InputError: there is none of that name.
    """
    try:
        return PROFILES[name]
    except KeyError:
        raise InputError(f"{name!r} is no broker profile; there are {', '.join(PROFILES)}") from None
