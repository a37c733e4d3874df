"""Commands about bundles as files: inspect, verify, sign, pack, unpack."""

from pathlib import Path

import click

from sdcompress.cli.options import BUNDLE, FILE, FOLDER, NEW_FILE, PRECISION


@click.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path), metavar="BUNDLE|IR")
@click.option("--layers", is_flag=True, help="List every layer, not only counts or sums.")
@click.option("--executed", is_flag=True, help="Compile, and show what the device makes of it.")
@click.option("--timed", is_flag=True, help="Compile, run, and show where the time goes.")
@click.option(
    "--device", default="CPU", show_default=True, help="Device for --executed and --timed."
)
@click.option("--precision", type=PRECISION,
              help="Execution precision for both.  [default: the device's choice]")  # fmt: skip
@click.option("--peer-scheduler", metavar="NAME", help="Write a scheduler that peers have, such as "
              "ddim or euler, into the bundle's scheduler files.")  # fmt: skip
def inspect(
    folder: Path,
    *,
    layers: bool,
    executed: bool,
    timed: bool,
    device: str,
    precision: str | None,
    peer_scheduler: str | None,
) -> None:
    """Show layers by precision and sizes, of a bundle or of one IR, and which peers can run it.

    With --executed, show instead which kernels a device runs, and in which precision it keeps the
    weights: some that are compressed in the file are unpacked when a device compiles the model.
    With --timed, show which kernels the time of one inference goes to, with --layers also layer,
    kernel, precision and time of each. Both show the UNet asked for both branches of guidance in
    one batch, without the bundle's shortcuts. With --peer-scheduler the bundle's scheduler files
    and manifest change; this runtime goes on to draw with the scheduler that the bundle was
    evaluated with.
    """
    from sdcompress.inspection import describe
    from sdcompress.interchange import describe_peers, write_peer_scheduler

    if executed + timed + bool(peer_scheduler) > 1:
        raise click.UsageError("--executed, --timed and --peer-scheduler exclude each other")
    if timed:
        from sdcompress.executed import describe_times

        for line in describe_times(folder, device, precision, every_layer=layers):
            click.echo(line)
        return
    if executed:
        from sdcompress.executed import describe_executed

        for line in describe_executed(folder, device, precision, every_layer=layers):
            click.echo(line)
        return
    if peer_scheduler:
        click.echo(write_peer_scheduler(folder, peer_scheduler))
    for line in (*describe(folder, every_layer=layers), *describe_peers(folder)):
        click.echo(line)


@click.command()
@click.argument("folder", type=BUNDLE, metavar="DIR")
@click.option("--public-key", type=FILE, help="Also demand a signature by this Ed25519 key (PEM).")
def verify(folder: Path, public_key: Path | None) -> None:
    """Check every file of a bundle against its manifest."""
    from sdcompress.runtime import read_manifest, require_signature
    from sdcompress.runtime.manifest import require_whole

    if public_key:
        require_signature(folder, public_key)
    require_whole(folder)
    signed = ", signed by the key given" if public_key else ""
    click.echo(
        f"{folder}: {len(read_manifest(folder).files)} files, all as the manifest says{signed}"
    )


@click.command()
@click.argument("folder", type=BUNDLE, metavar="DIR")
@click.option("--key", type=FILE, required=True, help="Ed25519 private key (PEM).")
def sign(folder: Path, key: Path) -> None:
    """Sign a bundle's manifest, and so every file in it, with an Ed25519 key.

    \b
    Make a pair of keys once, and keep the first one secret:
      openssl genpkey -algorithm ed25519 -out private.pem
      openssl pkey -in private.pem -pubout -out public.pem
    """
    from sdcompress.runtime import sign as run_sign

    click.echo(run_sign(folder, key))


@click.command()
@click.argument("folder", type=BUNDLE, metavar="DIR")
@click.argument("archive", type=NEW_FILE)
def pack(folder: Path, archive: Path) -> None:
    """Write a bundle as one file, the same bytes for the same bundle."""
    from sdcompress.runtime import pack as run_pack

    click.echo(run_pack(folder, archive))


@click.command()
@click.argument("archive", type=FILE)
@click.argument("folder", type=FOLDER)
def unpack(archive: Path, folder: Path) -> None:
    """Write the bundle in ARCHIVE to the new folder FOLDER, every file checked on the way."""
    from sdcompress.runtime import unpack as run_unpack

    click.echo(run_unpack(archive, folder))
