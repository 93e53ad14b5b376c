"""The ledger's tables in SQLite, and how books that older gateways kept become those of this one."""

from __future__ import annotations

from gateway.ledger import sqlite_transfers, sums

SCHEMA = (
    """
    CREATE TABLE purchases (
        serial        INTEGER PRIMARY KEY AUTOINCREMENT,
        id            TEXT    NOT NULL UNIQUE,
        fingerprint   TEXT    NOT NULL,
        tenant        TEXT    NOT NULL,
        key_id        TEXT    NOT NULL,
        model         TEXT    NOT NULL,
        parameters    TEXT    NOT NULL,
        seed          INTEGER,
        fresh         INTEGER NOT NULL,
        state         TEXT    NOT NULL
                      CHECK (state IN
                          ('queued', 'sending', 'running', 'unknown', 'settled', 'released', 'lost')),
        held_micros   INTEGER NOT NULL CHECK (held_micros >= 0),
        day           INTEGER NOT NULL,
        owner         TEXT    NOT NULL,
        lease_until   REAL    NOT NULL,
        fence         INTEGER NOT NULL,
        ticket        TEXT,
        reserved_at   REAL    NOT NULL,
        sent_at       REAL,
        bought_at     REAL,
        ended_at      REAL,
        cost_micros   INTEGER CHECK (cost_micros >= 0),
        cost_reported INTEGER,
        generation    TEXT,
        reason        TEXT,
        CHECK (state NOT IN ('running', 'settled') OR ticket IS NOT NULL),
        CHECK ((state IN ('settled', 'lost')) = (cost_micros IS NOT NULL)),
        CHECK ((state = 'settled') = (generation IS NOT NULL)),
        CHECK ((state IN ('settled', 'released', 'lost')) = (ended_at IS NOT NULL))
    );
    CREATE UNIQUE INDEX one_open_purchase_a_fingerprint ON purchases (fingerprint)
        WHERE state IN ('queued', 'sending', 'running', 'unknown');
    CREATE INDEX open_purchases ON purchases (tenant, day, held_micros, model)
        WHERE state IN ('queued', 'sending', 'running', 'unknown');
    CREATE INDEX unknown_purchases ON purchases (held_micros) WHERE state = 'unknown';
    CREATE INDEX lost_purchases ON purchases (cost_micros) WHERE state = 'lost';
    CREATE INDEX owned_purchases ON purchases (owner)
        WHERE state IN ('queued', 'sending', 'running', 'unknown');
    CREATE INDEX tickets ON purchases (ticket) WHERE ticket IS NOT NULL;
    CREATE INDEX newest_purchases ON purchases (fingerprint, serial) WHERE state != 'released';
    CREATE TABLE spending (
        tenant       TEXT    NOT NULL,
        day          INTEGER NOT NULL,
        model        TEXT    NOT NULL,
        spent_micros INTEGER NOT NULL CHECK (spent_micros >= 0),
        purchases    INTEGER NOT NULL,
        PRIMARY KEY (tenant, day, model)
    ) WITHOUT ROWID;
    """,
    # What was asked for is apart from what changes: a change writes its row anew, and an image may be in the parameters.
    # What is left of a budget is read from one row a day, however much was ever bought and however much is open.
    """
    CREATE TABLE purchase_parameters (serial INTEGER PRIMARY KEY, parameters TEXT NOT NULL);
    INSERT INTO purchase_parameters SELECT serial, parameters FROM purchases;
    CREATE TABLE purchases_anew (
        serial        INTEGER PRIMARY KEY AUTOINCREMENT,
        id            TEXT    NOT NULL UNIQUE,
        fingerprint   TEXT    NOT NULL,
        tenant        TEXT    NOT NULL,
        key_id        TEXT    NOT NULL,
        model         TEXT    NOT NULL,
        seed          INTEGER,
        fresh         INTEGER NOT NULL,
        state         TEXT    NOT NULL
                      CHECK (state IN
                          ('queued', 'sending', 'running', 'unknown', 'settled', 'released', 'lost')),
        held_micros   INTEGER NOT NULL CHECK (held_micros >= 0),
        day           INTEGER NOT NULL,
        owner         TEXT    NOT NULL,
        lease_until   REAL    NOT NULL,
        fence         INTEGER NOT NULL,
        ticket        TEXT,
        reserved_at   REAL    NOT NULL,
        sent_at       REAL,
        bought_at     REAL,
        ended_at      REAL,
        cost_micros   INTEGER CHECK (cost_micros >= 0),
        cost_reported INTEGER,
        generation    TEXT,
        reason        TEXT,
        CHECK (state NOT IN ('running', 'settled') OR ticket IS NOT NULL),
        CHECK ((state IN ('settled', 'lost')) = (cost_micros IS NOT NULL)),
        CHECK ((state = 'settled') = (generation IS NOT NULL)),
        CHECK ((state IN ('settled', 'released', 'lost')) = (ended_at IS NOT NULL))
    );
    INSERT INTO purchases_anew
        SELECT serial, id, fingerprint, tenant, key_id, model, seed, fresh, state, held_micros, day, owner,
            lease_until, fence, ticket, reserved_at, sent_at, bought_at, ended_at, cost_micros, cost_reported,
            generation, reason
        FROM purchases;
    DROP TABLE purchases;
    ALTER TABLE purchases_anew RENAME TO purchases;
    CREATE UNIQUE INDEX one_open_purchase_a_fingerprint ON purchases (fingerprint)
        WHERE state IN ('queued', 'sending', 'running', 'unknown');
    CREATE INDEX owned_purchases ON purchases (owner)
        WHERE state IN ('queued', 'sending', 'running', 'unknown');
    CREATE INDEX unknown_purchases ON purchases (held_micros) WHERE state = 'unknown';
    CREATE INDEX lost_purchases ON purchases (cost_micros) WHERE state = 'lost';
    CREATE INDEX tickets ON purchases (ticket) WHERE ticket IS NOT NULL;
    CREATE INDEX newest_purchases ON purchases (fingerprint, serial) WHERE state != 'released';

    DROP TABLE spending;
    CREATE TABLE spending (
        tenant       TEXT    NOT NULL,
        model        TEXT    NOT NULL,
        spent_micros INTEGER NOT NULL CHECK (spent_micros >= 0),
        purchases    INTEGER NOT NULL,
        PRIMARY KEY (tenant, model)
    ) WITHOUT ROWID;
    INSERT INTO spending
        SELECT tenant, model, SUM(cost_micros), COUNT(*) FROM purchases
        WHERE cost_micros IS NOT NULL GROUP BY tenant, model;
    CREATE TABLE balances (
        tenant       TEXT    NOT NULL,
        day          INTEGER NOT NULL,
        spent_micros INTEGER NOT NULL CHECK (spent_micros >= 0),
        held_micros  INTEGER NOT NULL CHECK (held_micros >= 0),
        PRIMARY KEY (tenant, day)
    ) WITHOUT ROWID;
    INSERT INTO balances
        SELECT tenant, day, SUM(COALESCE(cost_micros, 0)), SUM(held_micros * (ended_at IS NULL)) FROM purchases
        GROUP BY tenant, day;
    INSERT INTO balances SELECT tenant, -1, SUM(spent_micros), SUM(held_micros) FROM balances GROUP BY tenant;

    CREATE TRIGGER purchase_reserved AFTER INSERT ON purchases WHEN NEW.ended_at IS NULL BEGIN
        INSERT INTO balances
            VALUES (NEW.tenant, NEW.day, 0, NEW.held_micros), (NEW.tenant, -1, 0, NEW.held_micros)
            ON CONFLICT (tenant, day) DO UPDATE SET held_micros = held_micros + excluded.held_micros;
    END;
    CREATE TRIGGER purchase_ended AFTER UPDATE ON purchases
    WHEN OLD.ended_at IS NULL AND NEW.ended_at IS NOT NULL BEGIN
        UPDATE balances
            SET held_micros = held_micros - NEW.held_micros,
                spent_micros = spent_micros + COALESCE(NEW.cost_micros, 0)
            WHERE tenant = NEW.tenant AND day IN (NEW.day, -1);
        INSERT INTO spending SELECT NEW.tenant, NEW.model, NEW.cost_micros, 1 WHERE NEW.cost_micros IS NOT NULL
            ON CONFLICT (tenant, model) DO UPDATE SET
                spent_micros = spent_micros + excluded.spent_micros, purchases = purchases + 1;
    END;
    """,
    # Running totals for every place in the tree of tenants, key and model. Until now all tenants were roots.
    f"""
    DROP TRIGGER purchase_reserved;
    DROP TRIGGER purchase_ended;
    DROP TABLE balances;
    DROP TABLE spending;
    ALTER TABLE purchases ADD COLUMN path TEXT NOT NULL DEFAULT '';
    UPDATE purchases SET path = tenant;
    ALTER TABLE purchases DROP COLUMN day;
    ALTER TABLE purchases ADD COLUMN quarter INTEGER
        GENERATED ALWAYS AS (CAST(reserved_at AS INTEGER) / 900) VIRTUAL;
    {sums.SCHEMA}
    {sums.FROM_PURCHASES}
    """,
    # What was asked for, as far as the price depends on it: from what requests of one shape cost, the next is estimated.
    """
    ALTER TABLE purchases ADD COLUMN shape TEXT NOT NULL DEFAULT '';
    CREATE INDEX evidence ON purchases (model, serial, shape, cost_micros, bought_at, ended_at)
        WHERE state = 'settled' AND cost_reported = 1;
    """,
    # What tenants owe each other. Until now it was nothing.
    sqlite_transfers.SCHEMA,
)
"""Script n leads from version n to n + 1."""
