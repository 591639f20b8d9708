"""What Python programs do with a Redis server, done to a cluster by redis-py.

Usage: redis_py.py HOST:PORT [HOST:PORT ...]; each address is a replica of the same cluster. Ends with
code 0 and prints "ok" if everything was as with Redis; with 77 if the module redis is missing.
"""

import sys
import threading
import time

try:
    import redis
except ImportError:
    sys.exit(77)


def connect(address, **options):
    host, port = address.rsplit(":", 1)
    return redis.Redis(host=host, port=int(port), socket_timeout=20, **options)


def strings(r):
    assert r.ping()
    assert r.set("s", "one")
    assert r.get("s") == b"one"
    assert r.set("s", "two", nx=True) is None
    assert r.set("s", "two", xx=True, get=True) == b"one"
    assert r.append("s", "!") == 4 and r.strlen("s") == 4
    assert r.getrange("s", 0, 2) == b"two" and r.setrange("s", 3, "?") == 4
    assert r.mset({"a": 1, "b": 2}) and r.mget("a", "b", "none") == [b"1", b"2", None]
    assert r.incr("n") == 1 and r.incrby("n", 41) == 42 and r.decr("n") == 41
    assert abs(r.incrbyfloat("f", 0.5) - 0.5) < 1e-9
    assert r.delete("a", "b", "none") == 2 and r.exists("a", "s") == 1
    assert r.type("s") == b"string" and r.type("none") == b"none"
    assert r.rename("s", "t") and r.get("t") == b"two?"
    try:
        r.incr("t")
        raise AssertionError("INCR of a text")
    except redis.ResponseError as error:
        assert "not an integer" in str(error), error


def pipelines(r):
    with r.pipeline(transaction=False) as pipe:
        for number in range(500):
            pipe.set(f"p{number}", number).get(f"p{number}")
        answers = pipe.execute()
    assert answers[1::2] == [str(number).encode() for number in range(500)], answers[:10]
    with r.pipeline(transaction=True) as pipe:
        pipe.set("x", 1).incr("x").incrby("x", 40).get("x")
        assert pipe.execute() == [True, 2, 42, b"42"]
    # One command that fails does not take the others with it, as in Redis.
    with r.pipeline(transaction=True) as pipe:
        pipe.set("text", "abc").incr("text").set("after", "yes")
        answers = pipe.execute(raise_on_error=False)
    assert answers[0] is True and isinstance(answers[1], redis.ResponseError) and answers[2] is True
    assert r.get("after") == b"yes"


def watches(r, other):
    r.set("w", "1")
    with r.pipeline() as pipe:
        pipe.watch("w")
        seen = int(pipe.get("w"))
        pipe.multi()
        pipe.set("w", seen + 1)
        assert pipe.execute() == [True]
    assert r.get("w") == b"2"
    with r.pipeline() as pipe:
        pipe.watch("w")
        assert other.set("w", "stolen")
        pipe.multi()
        pipe.set("w", "lost")
        try:
            pipe.execute()
            raise AssertionError("EXEC after a watched key changed")
        except redis.WatchError:
            pass
    assert r.get("w") == b"stolen"


def count_by_watching(addresses):
    """Read, add and write back under WATCH, from a thread at each replica: nothing is lost."""
    connect(addresses[0]).set("shared", 0)
    failures = []

    def add(address):
        try:
            r = connect(address)
            for _ in range(20):
                r.transaction(
                    lambda pipe: (
                        lambda seen: (pipe.multi(), pipe.set("shared", seen + 1))
                    )(int(pipe.get("shared"))),
                    "shared",
                )
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=add, args=(address,)) for address in addresses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    total = int(connect(addresses[-1]).get("shared"))
    assert total == 20 * len(addresses), total


def gone(r, key):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if r.get(key) is None:
            return True
        time.sleep(0.01)
    return False


def expiry(r, other):
    assert r.set("e", "soon", px=200) and 0 < r.pttl("e") <= 200
    assert gone(r, "e") and other.get("e") is None, "expired on one replica, there on another"
    assert r.ttl("e") == -2
    assert r.set("e", "later", ex=100) and 95 < r.ttl("e") <= 100
    assert r.persist("e") and r.ttl("e") == -1
    assert r.expire("e", 100) and other.ttl("e") > 95
    assert r.setex("g", 100, "v") and r.getex("g", persist=True) == b"v" and r.ttl("g") == -1


def scans(r):
    r.flushall()
    assert r.dbsize() == 0
    r.mset({f"scan:{number}": number for number in range(300)})
    assert len(set(r.scan_iter("scan:*", count=50))) == 300
    assert len(r.keys("scan:1?")) == 10


def swaps(r):
    """Compare-and-set, in Valkey's words."""
    r.set("c", "old")
    assert r.execute_command("SET", "c", "new", "IFEQ", "wrong") is None
    assert r.execute_command("SET", "c", "new", "IFEQ", "old") in (b"OK", True)
    assert r.get("c") == b"new"


def main(addresses):
    for protocol in (2, 3):
        for at, address in enumerate(addresses):
            r = connect(address, protocol=protocol)
            other = connect(addresses[(at + 1) % len(addresses)], protocol=protocol)
            r.flushall()
            strings(r)
            pipelines(r)
            watches(r, other)
            expiry(r, other)
            swaps(r)
            scans(r)
            assert "redis_version" in r.info() and r.client_id() > 0
    count_by_watching(addresses)
    print("ok")


main(sys.argv[1:])
