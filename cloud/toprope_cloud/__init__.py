"""The cloud service: who should run what, and the answers that devices fall back on."""
