"""The same API on the classic stack: Flask, gunicorn, psycopg2, redis-py.

Settings: DATABASE_URL and REDIS_URL.
"""

import os

import psycopg2.pool
import redis
from flask import Flask, Response, jsonify, request

THREADS = 8
TTL_SECONDS = 300

app = Flask(__name__)
app.json.sort_keys = False
postgres = psycopg2.pool.ThreadedConnectionPool(THREADS, THREADS, os.environ["DATABASE_URL"])
cache = redis.Redis.from_url(os.environ["REDIS_URL"])


def run(statement, *parameters):
    """Runs one statement in a transaction of its own, and returns its row, if there is one."""
    connection = postgres.getconn()
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchone()
    finally:
        postgres.putconn(connection)


def fits(name, info):
    return 1 <= len(name.encode()) <= 128 and 1 <= len(info.encode()) <= 16384


@app.post("/register")
def register():
    user = request.get_json()
    name, info = user["name"], user["info"]
    if not fits(name, info):
        return "", 400
    insert = "INSERT INTO users (name, info) VALUES (%s, %s) ON CONFLICT DO NOTHING RETURNING name"
    if run(insert, name, info) is None:
        return "", 409
    return jsonify(name=name, info=info), 201


@app.put("/user/<name>")
def replace(name):
    info = request.get_json()["info"]
    if not fits(name, info):
        return "", 400
    if run("UPDATE users SET info = %s, updated_at = now() WHERE name = %s RETURNING name", info, name) is None:
        return "", 404
    cache.delete(f"user:{name}")
    return jsonify(name=name, info=info)


@app.get("/user/<name>")
def get_user(name):
    key = f"user:{name}"
    cached = cache.get(key)
    if cached is not None:
        return Response(cached, mimetype="application/json")
    row = run("SELECT info FROM users WHERE name = %s", name)
    if row is None:
        return "", 404
    user = {"name": name, "info": row[0]}
    cache.set(key, app.json.dumps({**user, "cache_hit": True}), ex=TTL_SECONDS)
    return jsonify(**user, cache_hit=False)


@app.get("/readyz")
def readyz():
    return ""
