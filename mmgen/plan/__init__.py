from mmgen.plan.masked import Masked
from mmgen.plan.next_neighbor import NextNeighbor
from mmgen.plan.next_scale import NextScale
from mmgen.plan.next_token import NextToken
from mmgen.plan.plan import GenerationPlan, PlanBatch
from mmgen.plan.random_order import RandomOrder

__all__ = ["GenerationPlan", "Masked", "NextNeighbor", "NextScale", "NextToken", "PlanBatch", "RandomOrder"]
