"""An order database with SQLAlchemy's ORM and SQLite in memory:
orders are written in batches, queried, loaded with related rows, changed and written back."""

import sys

from sqlalchemy import ForeignKey, create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, selectinload

import replay


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    lines: Mapped[list["Line"]] = relationship(back_populates="order")


class Line(Base):
    __tablename__ = "lines"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))
    cents: Mapped[int]
    order: Mapped[Order] = relationship(back_populates="lines")


with replay.record(sys.argv[1], clean=True, force=True):
    replay.mark("warm-up")
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    replay.mark("write")
    for batch in range(4):
        with Session(engine) as session:
            for each in range(15):
                lines = [Line(cents=line * 100 + each) for line in range(each % 5 + 1)]
                session.add(Order(customer=f"customer {batch * each}", lines=lines))
            session.commit()
    replay.mark("read")
    for turn in range(4):
        with Session(engine) as session:
            total = func.sum(Line.cents).label("total")
            session.execute(select(Order.customer, total).join(Order.lines).group_by(Order.customer)).all()
            chosen = select(Order).options(selectinload(Order.lines)).where(Order.id % 4 == turn)
            for order in session.scalars(chosen).all():
                order.lines[0].cents += 1
            session.commit()
